"""Zero-shot audio classification: which labels does a sound resemble most, by a model that embeds both?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from openavs.errors import InputError, InvalidOutputError
from openavs.stages.captioners.audio import Samples, audio_batches
from openavs.stages.captioners.label_selection import LabelSelector, Scores, combine_scales
from openavs.stages.vocabulary import load_vocabulary
from openavs.structures.types import AudioWindow, Caption, Waveform

TEMPLATES = ("This is a sound of {}.", "the sound of {}", "{}")
LOGIT_SCALE = 18.5
"""Scale of the cosines before the softmax, whatever a checkpoint learned.

Published similarities of CLAP (0.56 for a clap and its label, 0.23 to -0.02 for others) give a sound of one label about
half of the mass over 400 labels at this scale, and a window without any of them at most a tenth: see the simulation in
`tests/stages/captioners/test_selection.py`.
"""


class ZeroShotCaptioner(ABC):
    """Base of the two-tower captioners: vocabulary, templates, batching and selection. A backend adds its two towers.

    The score of a label is its share of the softmax over the whole vocabulary, so scores of one window sum to one. A
    label's text embedding is the mean over the templates. Captions are those of `LabelSelector`; their `question` is
    the first template.

    Args:
        vocabulary: `audioset-things`, `audioset`, a text file with one entry a line, or the entries themselves.
        top_k: things (labels with `things=False`) a window keeps at most.
        threshold: the least score, in [0, 1].
        min_ratio: the least score as a share of the window's best specific thing, in [0, 1].
        template: one sentence or several that an entry is put into; each contains `{}` once.
        things: False scores every label for itself.
        logit_scale: what the cosines are multiplied by; None takes the checkpoint's own.
        batch_size: sounds (and texts) that go through the model together.
    """

    name = "clap"  # in a recipe, for the sentences of errors

    def __init__(
        self,
        *,
        model: str,
        vocabulary: str | Sequence[str],
        top_k: int,
        threshold: float,
        min_ratio: float,
        template: str | Sequence[str],
        things: bool,
        logit_scale: float | None,
        batch_size: int,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"{self.name}: batch_size is at least 1, not {batch_size}")
        if logit_scale is not None and not logit_scale > 0:
            raise InputError(f"{self.name}: logit_scale is positive, not {logit_scale}")
        self.templates = (template,) if isinstance(template, str) else tuple(template)
        if not self.templates:
            raise InputError(f"{self.name}: template is empty; give at least one sentence with {{}} in it")
        for sentence in self.templates:
            if sentence.count("{}") != 1:
                raise InputError(f"{self.name}: template needs {{}} once, where the word goes, not '{sentence}'")
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
        self._texts: torch.Tensor | None = None
        self._labels: dict[tuple[str, ...], torch.Tensor] = {}

    @abstractmethod
    def _prepare(self, audio: Waveform) -> Samples:
        """The samples at the model's rate, no longer than it takes."""

    @abstractmethod
    def _embed_sounds(self, sounds: Sequence[Samples]) -> torch.Tensor:
        """Unit vectors `[sounds, d]`."""

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors `[texts, d]`."""

    @abstractmethod
    def _scale(self) -> torch.Tensor:
        """The checkpoint's own scale of the cosines."""

    @torch.inference_mode()
    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """One list of captions per window, of any length and rate; a window without samples has no captions."""
        rows = combine_scales(windows, self._score, softmax=True)
        return [
            [] if row is None else self.selector.captions(row, window, self.templates[0])
            for window, row in zip(windows, rows, strict=True)
        ]

    @torch.inference_mode()
    def text_similarity(self, phrases: Sequence[str], labels: Sequence[str]) -> Scores:
        """Cosine similarities `[phrases, labels]` of what the texts would sound like (for closed vocabularies)."""
        key = tuple(labels)
        if key not in self._labels:
            self._labels[key] = self._embed_entries(labels)
        similarity: Scores = (self._embed_entries(phrases) @ self._labels[key].T).float().cpu().numpy()
        return similarity

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
        whole = torch.isfinite(logits).all(dim=1, keepdim=True)
        scores: Scores = logits.float().softmax(dim=-1).where(whole, torch.nan).cpu().numpy()
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            window = windows[int(finite.argmin())]
            raise InvalidOutputError(
                f"the CLAP model '{self._ref}' gave scores that are not finite for the window from {window.start:g} "
                f"to {window.end:g} s; try dtype float32, or another copy of the model"
            )
        return scores

    def _text_embeddings(self) -> torch.Tensor:
        """Unit vectors `[vocabulary, d]`, computed once for an instance."""
        if self._texts is None:
            self._texts = self._embed_entries(self.vocabulary)
        return self._texts

    def _embed_entries(self, entries: Sequence[str]) -> torch.Tensor:
        """Unit vectors `[entries, d]`: the mean over the templates (Radford et al. 2021, section 3.1.4)."""
        towers = [self._embed_all([sentence.replace("{}", entry) for entry in entries]) for sentence in self.templates]
        if len(towers) == 1:
            return towers[0]
        return torch.nn.functional.normalize(torch.stack(towers).mean(dim=0), dim=-1)

    def _embed_all(self, texts: list[str]) -> torch.Tensor:
        parts = [self._embed_texts(texts[i : i + self.batch_size]) for i in range(0, len(texts), self.batch_size)]
        return torch.cat(parts)
