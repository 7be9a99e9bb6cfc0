"""Zero-shot audio classification: the labels of a vocabulary that a sound resembles most, by a two-tower model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from openavs.errors import InputError
from openavs.models.device import resolve_device
from openavs.models.hub import ResolvedModel, resolve
from openavs.stages.captioners.base import Samples, audio_batches, check_finite
from openavs.stages.captioners.label_selection import LabelSelector, Scores, combine_scales
from openavs.stages.vocabulary import load_vocabulary
from openavs.structures.types import AudioWindow, Caption, Waveform

TEMPLATES = ("This is a sound of {}.", "the sound of {}", "{}")
LOGIT_SCALE = 18.5
"""Factor of the cosines before the softmax, instead of the one that a checkpoint learned.

Published similarities of CLAP (0.56 for a clip and its label, 0.23 to -0.02 for others) give a sound of one label about
half of the mass over 400 labels with this factor, and a window without any of them at most a tenth: see the simulation
in `tests/stages/captioners/test_label_selection.py`.
"""


def check_templates(template: str | Sequence[str], name: str) -> tuple[str, ...]:
    """Return the sentences of the option `template` of the backend `name`; InputError unless each has one `{}`."""
    templates = (template,) if isinstance(template, str) else tuple(template)
    if not templates:
        raise InputError(f"{name}: template is empty; give at least one sentence with {{}} in it")
    for sentence in templates:
        if sentence.count("{}") != 1:
            raise InputError(f"{name}: template needs one {{}} for the vocabulary entry, not '{sentence}'")
    return templates


class ZeroShotCaptioner(ABC):
    """Base class of two-tower captioners: vocabulary, templates, batching and selection; a backend adds the towers.

    The score of a label is its share of the softmax over the whole vocabulary, so scores of one window sum to one. A
    label's text embedding is the mean over the templates. Captions are those of `LabelSelector`; their `question` is
    the first template.

    Args:
        model: reference of a checkpoint.
        vocabulary: `audioset-things`, `audioset`, a text file with one entry per line, or the entries themselves.
        top_k: maximum number of things (labels with `things=False`) per window.
        threshold: minimum score, in [0, 1].
        min_ratio: minimum score as a share of the window's best specific thing, in [0, 1].
        template: one or several sentences, each with one `{}` for the entry.
        things: False scores every label for itself.
        logit_scale: factor of the cosines; None takes the checkpoint's own.
        batch_size: sounds (and texts) per forward pass.
        device, dtype, offline: as for all backends; `auto` is float32 here, because bfloat16 would round the features,
            which are decibels, to steps of up to 0.5 dB, and CLAP's share of the time is small.

    Raises:
        InputError: an option outside its range.
        ModelError: the checkpoint is unavailable or of another kind.
    """

    name = "clap"  # of the backend, for error messages
    model: Any

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
        if batch_size < 1:
            raise InputError(f"{self.name}: batch_size is at least 1, not {batch_size}")
        if logit_scale is not None and not logit_scale > 0:
            raise InputError(f"{self.name}: logit_scale is positive, not {logit_scale}")
        self.templates = check_templates(template, self.name)
        self.vocabulary = load_vocabulary(vocabulary)
        self.selector = LabelSelector(
            self.vocabulary,
            top_k=top_k,
            threshold=threshold,
            min_ratio=min_ratio,
            combine="sum",
            things=things,
            name=self.name,
        )
        self.logit_scale, self.batch_size = logit_scale, batch_size
        self._ref = model
        self._vocabulary_embeddings: torch.Tensor | None = None
        self._label_embeddings: dict[tuple[str, ...], torch.Tensor] = {}
        resolved = resolve(model, offline)
        placement = resolve_device(device, "float32" if dtype == "auto" else dtype)
        self.device, self.dtype = placement.device, placement.dtype
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._load(resolved)

    @abstractmethod
    def _load(self, resolved: ResolvedModel) -> None:
        """Load the preprocessing, and the network with both towers as `self.model`."""

    @abstractmethod
    def _prepare(self, audio: Waveform) -> Samples:
        """Return the samples at the model's rate, at most of its maximum length."""

    @abstractmethod
    def _embed_sounds(self, sounds: Sequence[Samples]) -> torch.Tensor:
        """Return unit vectors `[sounds, d]`."""

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Return unit vectors `[texts, d]`."""

    def _release_text_encoder(self) -> None:  # noqa: B027 - optional
        """Free what `_embed_texts` alone needs and can load again; a backend that cannot does nothing."""

    def _scale(self) -> torch.Tensor:
        """The checkpoint's own factor of the cosines."""
        scale: torch.Tensor = self.model.logit_scale_a.exp()
        return scale

    @torch.inference_mode()
    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """Return one list of captions per window, of any length and rate; a window without samples has none."""
        rows = combine_scales(windows, self._score, softmax=True)
        return [
            [] if row is None else self.selector.captions(row, window, self.templates[0])
            for window, row in zip(windows, rows, strict=True)
        ]

    @torch.inference_mode()
    def text_similarity(self, phrases: Sequence[str], labels: Sequence[str]) -> Scores:
        """Return the cosines `[phrases, labels]` of the text embeddings (for closed vocabularies)."""
        key = tuple(labels)
        if key not in self._label_embeddings:
            self._label_embeddings[key] = self._embed_entries(labels)
        similarity: Scores = (self._embed_entries(phrases) @ self._label_embeddings[key].T).float().cpu().numpy()
        return similarity

    @torch.inference_mode()
    def embed_phrases(self, phrases: Sequence[str]) -> Scores:
        """Return the text embeddings, unit vectors `[phrases, d]`."""
        vectors: Scores = self._embed_entries(phrases).float().cpu().numpy()
        return vectors

    def _score(self, audios: Sequence[tuple[AudioWindow, Waveform]]) -> list[Scores | None]:
        """Probabilities `[vocabulary]` of each audio, summing to one; None for audio without samples."""
        sounds = [self._prepare(audio) for _, audio in audios]
        scores: list[Scores | None] = [None] * len(sounds)
        for batch in audio_batches(sounds, self.batch_size):
            rows = self._probabilities([sounds[i] for i in batch], [audios[i][0] for i in batch])
            for i, row in zip(batch, rows, strict=True):
                scores[i] = row
        return scores

    def _probabilities(self, sounds: Sequence[Samples], windows: Sequence[AudioWindow]) -> Scores:
        scale = self._scale() if self.logit_scale is None else self.logit_scale
        logits = self._embed_sounds(sounds) @ self._text_embeddings().T * scale
        valid = torch.isfinite(logits).all(dim=1, keepdim=True)
        scores: Scores = logits.float().softmax(dim=-1).where(valid, torch.nan).cpu().numpy()
        check_finite([bool(np.isfinite(row).all()) for row in scores], windows, f"CLAP model '{self._ref}' gave scores")
        return scores

    def _text_embeddings(self) -> torch.Tensor:
        """Unit vectors `[vocabulary, d]`, computed once per instance."""
        if self._vocabulary_embeddings is None:
            self._vocabulary_embeddings = self._embed_entries(self.vocabulary)
            if not self._label_embeddings:  # with a closed vocabulary, each clip has phrases to embed
                self._release_text_encoder()
        return self._vocabulary_embeddings

    def _embed_entries(self, entries: Sequence[str]) -> torch.Tensor:
        """Unit vectors `[entries, d]`: the mean over the templates (Radford et al. 2021, section 3.1.4)."""
        towers = [self._embed_all([sentence.replace("{}", entry) for entry in entries]) for sentence in self.templates]
        if len(towers) == 1:
            return towers[0]
        return torch.nn.functional.normalize(torch.stack(towers).mean(dim=0), dim=-1)

    def _embed_all(self, texts: list[str]) -> torch.Tensor:
        parts = [self._embed_texts(texts[i : i + self.batch_size]) for i in range(0, len(texts), self.batch_size)]
        return torch.cat(parts)
