"""CLAP (transformers ClapModel) as a zero-shot tagger: which entries of a vocabulary does a sound resemble most?

Library traps that are handled here: models without feature fusion need `rand_trunc` features although the extractor's
default is `fusion`; both crop long sounds at random, so ours are cut to their centre first; and a fused model's
extractor marks one window of a batch, drawn at random, as longer than the model takes, while here none is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import ClapModel, ClapProcessor

from openavs.models.device import resolve_device
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.stages.captioners.audio import Samples, crop_or_pad
from openavs.stages.captioners.zero_shot import LOGIT_SCALE, TEMPLATES, ZeroShotCaptioner
from openavs.structures.types import Waveform

logger = logging.getLogger(__name__)


class ClapCaptioner(ZeroShotCaptioner):
    """Captions with vocabulary entries; `ZeroShotCaptioner` defines the scores.

    Args:
        model: reference of a ClapModel checkpoint.
        vocabulary, top_k, threshold, min_ratio, template, things, logit_scale, batch_size: see `ZeroShotCaptioner`.
        device, dtype, offline: as everywhere; `auto` is float32 here, because bfloat16 would round the features, which
            are decibels, to steps of up to 0.5 dB, and CLAP's share of the time is small.
    """

    def __init__(
        self,
        *,
        model: str,
        vocabulary: str | Sequence[str] = "audioset-things",
        top_k: int = 3,
        threshold: float = 0.1,
        min_ratio: float = 0.35,
        template: str | Sequence[str] = TEMPLATES,
        things: bool = True,
        logit_scale: float | None = LOGIT_SCALE,
        batch_size: int = 32,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        super().__init__(
            model=model,
            vocabulary=vocabulary,
            top_k=top_k,
            threshold=threshold,
            min_ratio=min_ratio,
            template=template,
            things=things,
            logit_scale=logit_scale,
            batch_size=batch_size,
        )
        resolved = resolve(model, offline)
        placement = resolve_device(device, "float32" if dtype == "auto" else dtype)
        self.device, self.dtype = placement.device, placement.dtype
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.processor: Any = load_processor(ClapProcessor, resolved)
        self.model: Any = load_pretrained(ClapModel, resolved, self.dtype, self.device)

    def _prepare(self, audio: Waveform) -> Samples:
        extractor = self.processor.feature_extractor
        return crop_or_pad(audio, extractor.sampling_rate, int(extractor.nb_max_samples))

    def _embed_sounds(self, sounds: Sequence[Samples]) -> torch.Tensor:
        fused = bool(self.model.config.audio_config.enable_fusion)
        extractor = self.processor.feature_extractor
        features = extractor(
            list(sounds),
            sampling_rate=extractor.sampling_rate,
            truncation="fusion" if fused else "rand_trunc",
            return_tensors="pt",
        )["input_features"]
        # Windows are cut to what the model takes, so none is longer. The extractor marks one of each batch as longer,
        # at random; LAION's own inference marks none (laion_clap/clap_module/htsat.py, `forward`).
        longer = torch.zeros(len(sounds), 1, dtype=torch.bool, device=self.device)
        inputs = features.to(self.device, self.dtype)
        return _pooled(self.model.get_audio_features(input_features=inputs, is_longer=longer))

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        config, tokenizer = self.model.config.text_config, self.processor.tokenizer
        room = config.max_position_embeddings - (config.pad_token_id or 0) - 1  # positions are counted from the pad id
        length = min(int(tokenizer.model_max_length), room)
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return _pooled(
            self.model.get_text_features(
                input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
            )
        )

    def _scale(self) -> torch.Tensor:
        scale: torch.Tensor = self.model.logit_scale_a.exp()
        return scale


def _pooled(output: Any) -> torch.Tensor:
    """The embedding: newer releases return an output object, older ones the tensor itself."""
    embedding: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return embedding
