"""CLAP (transformers ClapModel) as a zero-shot captioner.

Adaptations to the library: models without feature fusion need `rand_trunc` features although the extractor's default is
`fusion`; both crop long sounds at random, so sounds are cropped to their center first; and a fused model's extractor
marks one window of a batch, drawn at random, as longer than the model takes, while here none is.

The text encoder, most of the weights, is loaded apart, when texts are embedded, and released with the vocabulary
embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import ClapModel, ClapProcessor, ClapTextModelWithProjection

from openavs.models.hub import ResolvedModel, load_pretrained, load_processor
from openavs.stages.captioners.base import Samples, crop_or_pad
from openavs.stages.captioners.zero_shot import ZeroShotCaptioner
from openavs.structures.types import Waveform


class ClapCaptioner(ZeroShotCaptioner):
    """Captions windows with vocabulary entries; `ZeroShotCaptioner` defines options and scores."""

    def _load(self, resolved: ResolvedModel) -> None:
        self.processor: Any = load_processor(ClapProcessor, resolved)
        self.model: Any = load_pretrained(ClapModel, resolved, self.dtype, self.device)
        # Its file stays mapped while any of its tensors is in use, with all pages that were read.
        del self.model.text_model
        self._resolved = resolved
        self._text_encoder: Any = None

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
        # Windows are cropped to the model's maximum, so none is longer. The extractor marks one of each batch as
        # longer, at random; LAION's own inference marks none (laion_clap/clap_module/htsat.py, `forward`).
        longer = torch.zeros(len(sounds), 1, dtype=torch.bool, device=self.device)
        inputs = features.to(self.device, self.dtype)
        vectors: torch.Tensor = self.model.get_audio_features(input_features=inputs, is_longer=longer).pooler_output
        return vectors

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        config, tokenizer = self.model.config.text_config, self.processor.tokenizer
        if self._text_encoder is None:
            self._text_encoder = load_pretrained(
                ClapTextModelWithProjection, self._resolved, self.dtype, self.device, config=config
            )
        # RoBERTa counts positions from the pad id.
        positions = config.max_position_embeddings - (config.pad_token_id or 0) - 1
        length = min(int(tokenizer.model_max_length), positions)
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        return torch.nn.functional.normalize(self._text_encoder(**inputs).text_embeds, dim=-1)

    def _release_text_encoder(self) -> None:
        self._text_encoder = None
