"""Zero-shot hearing: which entries of a vocabulary does a sound resemble most, by a model that embeds both?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from openavs.captioners.sounds import Samples, batches
from openavs.types import Caption, InputError, UnusableAnswer, Window
from openavs.vocabulary import load_vocabulary

Scores = npt.NDArray[np.float32]


class SimilarityCaptioner(ABC):
    """What all two-tower models share: template, vocabulary, thresholds, batching. A backend adds its two towers.

    The score of an entry is the softmax over the whole vocabulary of the model's scaled cosine, so scores of one window
    sum to one. Up to `top_k` captions a window, each of at least `threshold`, best first; `question` is the template.
    """

    name = "clap"  # in a recipe, for the sentences of errors

    def __init__(
        self,
        *,
        model: str,
        vocabulary: str | Sequence[str],
        top_k: int,
        threshold: float,
        template: str,
        batch_size: int,
    ) -> None:
        if top_k < 1 or batch_size < 1:
            raise InputError(f"{self.name}: top_k and batch_size are at least 1, not {top_k} and {batch_size}")
        if not 0.0 <= threshold <= 1.0:
            raise InputError(f"{self.name}: threshold lies in [0, 1], not {threshold}")
        if template.count("{}") != 1:
            raise InputError(f"{self.name}: template needs {{}} once, where the word goes, not '{template}'")
        self.vocabulary = load_vocabulary(vocabulary)
        self.top_k, self.threshold, self.template, self.batch_size = top_k, threshold, template, batch_size
        self._ref = model
        self._texts: torch.Tensor | None = None
        self._labels: dict[tuple[str, ...], torch.Tensor] = {}

    @abstractmethod
    def _prepare(self, window: Window) -> Samples:
        """The samples at the model's rate, no longer than it takes."""

    @abstractmethod
    def _embed_sounds(self, sounds: Sequence[Samples]) -> torch.Tensor:
        """Unit vectors `[windows, d]`."""

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors `[texts, d]`."""

    @abstractmethod
    def _scale(self) -> torch.Tensor:
        """What the cosines are multiplied with before the softmax."""

    @torch.inference_mode()
    def caption(self, windows: Sequence[Window]) -> list[list[Caption]]:
        """One list of captions per window; windows of any length and rate, those without samples hear nothing."""
        sounds = [self._prepare(window) for window in windows]
        captions: list[list[Caption]] = [[] for _ in windows]
        for batch in batches(sounds, self.batch_size):
            scores = self._scores([sounds[i] for i in batch], [windows[i] for i in batch])
            for i, row in zip(batch, scores, strict=True):
                captions[i] = self._captions(row, windows[i])
        return captions

    @torch.inference_mode()
    def text_similarity(self, phrases: Sequence[str], labels: Sequence[str]) -> Scores:
        """Cosine similarities `[phrases, labels]` of what the texts would sound like (for closed vocabularies)."""
        key = tuple(labels)
        if key not in self._labels:
            self._labels[key] = self._embed_texts([self.template.replace("{}", label) for label in labels])
        asked = self._embed_texts([self.template.replace("{}", phrase) for phrase in phrases])
        similarity: Scores = (asked @ self._labels[key].T).float().cpu().numpy()
        return similarity

    def _scores(self, sounds: Sequence[Samples], windows: Sequence[Window]) -> Scores:
        """Probabilities `[windows, vocabulary]`, summing to one along the vocabulary."""
        logits = self._embed_sounds(sounds) @ self._text_embeddings().T * self._scale()
        finite = torch.isfinite(logits).all(dim=1).tolist()
        if not all(finite):
            window = windows[finite.index(False)]
            raise UnusableAnswer(
                f"the CLAP model '{self._ref}' gave scores that are not finite for the window from {window.start:g} "
                f"to {window.end:g} s; try dtype float32, or another copy of the model"
            )
        scores: Scores = logits.float().softmax(dim=-1).cpu().numpy()
        return scores

    def _text_embeddings(self) -> torch.Tensor:
        """Unit vectors `[vocabulary, d]`, computed once for an instance."""
        if self._texts is None:
            texts = [self.template.replace("{}", entry) for entry in self.vocabulary]
            parts = [self._embed_texts(texts[i : i + self.batch_size]) for i in range(0, len(texts), self.batch_size)]
            self._texts = torch.cat(parts)
        return self._texts

    def _captions(self, scores: Scores, window: Window) -> list[Caption]:
        best = np.argsort(-scores, kind="stable")[: self.top_k]
        return [
            Caption(self.vocabulary[i], float(scores[i]), window.start, window.end, self.template)
            for i in best
            if scores[i] >= self.threshold
        ]
