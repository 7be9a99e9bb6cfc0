"""CLAP (transformers ClapModel) as a zero-shot tagger: which entries of a vocabulary does a sound resemble most?

Library traps that are handled here: models without feature fusion need `rand_trunc` features although the extractor's
default is `fusion`; both crop long sounds at random, so ours are cut to their centre first; and a fused model's
extractor marks one window of a batch, drawn at random, as long, so here each window counts as it would alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import ClapModel, ClapProcessor

from openavs.captioners.similarity import SimilarityCaptioner
from openavs.captioners.sounds import Samples, fitted
from openavs.device import resolve_device
from openavs.hub import load_pretrained, load_processor, resolve
from openavs.types import Window

logger = logging.getLogger(__name__)


class ClapCaptioner(SimilarityCaptioner):
    """Hears vocabulary entries; see `SimilarityCaptioner` for what a score is.

    Args:
        model: reference of a ClapModel checkpoint.
        vocabulary: `audioset`, a text file with one entry a line, or the entries themselves.
        top_k: captions a window at most.
        threshold: the least score, in [0, 1].
        template: the sentence an entry is put into; holds `{}` once.
        batch_size: windows (and texts) that go through the model together.
        device, dtype, offline: as everywhere; `auto` is float32 here, because bfloat16 would round the features, which
            are decibels, to steps of up to 0.5 dB, and CLAP's share of the time is small.
    """

    def __init__(
        self,
        *,
        model: str,
        vocabulary: str | Sequence[str] = "audioset",
        top_k: int = 3,
        threshold: float = 0.2,
        template: str = "This is a sound of {}.",
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
            template=template,
            batch_size=batch_size,
        )
        resolved = resolve(model, offline)
        placement = resolve_device(device, "float32" if dtype == "auto" else dtype)
        self.device, self.dtype = placement.device, placement.dtype
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.processor: Any = load_processor(ClapProcessor, resolved)
        self.model: Any = load_pretrained(ClapModel, resolved, self.dtype, self.device)

    def _prepare(self, window: Window) -> Samples:
        extractor = self.processor.feature_extractor
        return fitted(window, extractor.sampling_rate, int(extractor.nb_max_samples))

    def _embed_sounds(self, sounds: Sequence[Samples]) -> torch.Tensor:
        fused = bool(self.model.config.audio_config.enable_fusion)
        extractor = self.processor.feature_extractor
        features = extractor(
            list(sounds),
            sampling_rate=extractor.sampling_rate,
            truncation="fusion" if fused else "rand_trunc",
            return_tensors="pt",
        )["input_features"]
        # For a window alone the extractor always says "longer" when fusing; in a batch it would draw who is.
        longer = torch.full((len(sounds), 1), fused, device=self.device)
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
