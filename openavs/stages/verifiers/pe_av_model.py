"""PE-AV (transformers PeAudioVideoModel): embeddings of sounds, films and phrases, and the logits of their pairs.

Its `forward` wants one sound for each film, and its `get_*` methods fail in transformers 5.23. The parts are therefore
called as `forward` calls them, so that each sound, film and phrase is encoded once, whatever it is compared with.

Inputs have no padding: sounds and phrases are encoded one by one, and all films have the same number of frames. So
nothing depends on the rest of a batch beyond float rounding.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from packaging.version import Version
from transformers import AutoTokenizer, PeAudioFeatureExtractor, PeAudioVideoModel

from openavs.errors import InputError, InvalidOutputError
from openavs.media.audio import resample
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor
from openavs.structures.types import ImageArray, Waveform
from openavs.utils.optional_deps import EXTRAS, import_timm

logger = logging.getLogger(__name__)

TOO_NEW = Version("1.0.31")
"""The first timm with which transformers 5.23 cannot load the model."""

DEFAULT_FRAMES = 16
"""Frames of a film for checkpoints whose processor names no number."""


class PairLogits(NamedTuple):
    """Logits of every pair of a sound and a film, `[sounds, films]`, in float32.

    Attributes:
        sound: the film against the sound (`logits_audio_video`).
        sound_and_text: the film against sound and phrase together (`logits_audio_plus_text_video`).
    """

    sound: torch.Tensor
    sound_and_text: torch.Tensor


class PeAudioVideoEmbedder:
    """The model with its processors.

    Args:
        resolved: a PeAudioVideoModel checkpoint.
        device, dtype: resolved placement.

    Attributes:
        frames: frames that a film has, by the video processor; `DEFAULT_FRAMES` if it names no number.
        fill: the mean color of the video processor, uint8 `[3]`.

    Raises:
        InputError: timm or torchvision is missing or incompatible.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    def __init__(self, resolved: ResolvedModel, device: torch.device, dtype: torch.dtype) -> None:
        # The video tower is timm's, which imports torchvision, and transformers' video processor needs torchvision.
        timm = import_timm()
        if Version(timm.__version__) >= TOO_NEW:  # a buffer of its rotary embedding is tied as if it were a parameter
            raise InputError(
                f"pe-av: timm {timm.__version__} cannot be used, because transformers cannot load PE-AV with timm "
                f"{TOO_NEW} or newer; {EXTRAS['timm'].command}"
            )
        from transformers import PeVideoVideoProcessor

        self._ref, self._device, self._dtype = resolved.ref, device, dtype
        self._sounds: Any = load_processor(PeAudioFeatureExtractor, resolved)
        self._films: Any = load_processor(PeVideoVideoProcessor, resolved)
        self._tokenizer: Any = load_processor(AutoTokenizer, resolved)
        printed = io.StringIO()  # transformers prints its own missing docstrings while it builds the model
        with contextlib.redirect_stdout(printed):
            self.model: Any = load_pretrained(PeAudioVideoModel, resolved, dtype, device)
        logger.debug("printed while loading %s: %s", resolved.ref, printed.getvalue().strip())
        self.frames = int(self._films.num_frames or DEFAULT_FRAMES)
        self.fill = np.round(np.asarray(self._films.image_mean) * 255).astype(np.uint8)

    @torch.inference_mode()
    def embed_sound(self, audio: Waveform) -> torch.Tensor:
        """Return the pooled state of a sound that is not empty, `[D]`."""
        rate = int(self._sounds.sampling_rate)
        samples = resample(audio, rate).samples
        values = self._sounds(np.asarray(samples), sampling_rate=rate, padding=False, return_tensors="pt")
        inputs = values["input_values"].to(self._device, self._dtype).reshape(1, 1, -1)
        pooled: torch.Tensor = self._embedder.audio_encoder(inputs).pooler_output[0]
        return pooled

    @torch.inference_mode()
    def embed_films(self, films: Sequence[ImageArray]) -> list[torch.Tensor]:
        """Return the embedding `[E]` of each film, uint8 `[T, side, side, 3]`; sides may differ, T is the same."""
        pixels = torch.cat([self.prepare_film(film) for film in films])
        pooled = self._embedder.video_encoder(pixels).pooler_output
        return list(self.model.video_model.video_head(pooled))

    def prepare_film(self, film: ImageArray) -> torch.Tensor:
        """Convert uint8 `[T, side, side, 3]` to normalized pixels `[1, T, 3, H, W]` by the checkpoint's processor."""
        video = torch.from_numpy(film).permute(0, 3, 1, 2).to(self._device)
        pixels: torch.Tensor = self._films([video], do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        return pixels.to(self._device, self._dtype)

    @torch.inference_mode()
    def embed_phrase(self, phrase: str) -> torch.Tensor:
        """Return the text state of a phrase, `[H]`."""
        longest = int(self.model.config.text_config.max_position_embeddings)
        tokens = self._tokenizer([phrase], truncation=True, max_length=longest, return_tensors="pt")
        inputs = {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask")}
        states = self.model.text_model(**inputs, output_hidden_states=True).hidden_states
        text: torch.Tensor = states[-1][0, 0]
        return text

    @torch.inference_mode()
    def logits(self, sounds: Sequence[torch.Tensor], films: Sequence[torch.Tensor], text: torch.Tensor) -> PairLogits:
        """Return the logits of every pair.

        Raises:
            InvalidOutputError: a logit is not finite.
        """
        model, audio, video = self.model, torch.stack(list(sounds)), torch.stack(list(films))
        both = model.audio_plus_text_head(torch.cat([audio, text.expand(len(audio), -1)], dim=-1))
        scale, bias = model.audio_plus_text_logit_scale, model.audio_plus_text_logit_bias
        with_text = (both @ video.T) * scale + bias
        alone = model.audio_model.audio_head(audio) @ video.T
        alone = alone * model.audio_video_logit_scale + model.audio_video_logit_bias
        found = PairLogits(alone.float().cpu(), with_text.float().cpu())
        if not all(bool(torch.isfinite(values).all()) for values in found):
            raise InvalidOutputError(
                f"the PE-AV model '{self._ref}' returned numbers that are not finite; try dtype=float32, or another "
                "copy of the model"
            )
        return found

    @property
    def _embedder(self) -> Any:
        return self.model.audio_video_encoder.embedder
