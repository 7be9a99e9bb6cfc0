"""A sound classifier as captioner: AST and every other head that transformers' AutoModelForAudioClassification loads.

Library traps that are handled here: extractors cut long sounds at their end, so ours are cut to their centre first;
models of the wav2vec kind change their answer with the padding that a longer batch mate brings, so only sounds of the
same length go through the model together; and AudioSet checkpoints do not say that their labels exclude nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from openavs.errors import InputError, InvalidOutputError, ModelError
from openavs.models.device import resolve_device
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.stages.captioners.audio import Samples, audio_batches, crop_or_pad
from openavs.stages.captioners.label_selection import LabelSelector, Scores, combine_scales
from openavs.structures.types import AudioWindow, Caption, Waveform

logger = logging.getLogger(__name__)

_AUDIOSET_LABELS = 527
_LONGEST = 30.0  # seconds, for models that take any length
_SHORTEST = 0.1  # seconds: of less, some extractors cannot make a frame


class AudioTaggerCaptioner:
    """Captions with the labels that a classifier was trained on, as they are spelled there.

    Args:
        model: reference of an audio classification checkpoint.
        top_k, threshold, min_ratio, things: see `LabelSelector`.
        scores: `sigmoid` (labels go together, each scored by itself), `softmax` (they exclude each other, the scores of
            all sum to one) or `auto`: what the checkpoint's `problem_type` says; if it says nothing, sigmoid for
            AudioSet's 527 labels and softmax for others.
        batch_size: windows that go through the model together.
        device, dtype, offline: as everywhere; `auto` is float32 here, a tagger's share of the time is small.
    """

    def __init__(
        self,
        *,
        model: str,
        top_k: int = 3,
        threshold: float = 0.05,
        min_ratio: float = 0.35,
        things: bool = True,
        scores: Literal["auto", "sigmoid", "softmax"] = "auto",
        batch_size: int = 16,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"audio-tagger: batch_size is at least 1, not {batch_size}")
        if scores not in ("auto", "sigmoid", "softmax"):
            raise InputError(f"audio-tagger: scores is auto, sigmoid or softmax, not '{scores}'")
        self.batch_size = batch_size
        resolved = resolve(model, offline)
        placement = resolve_device(device, "float32" if dtype == "auto" else dtype)
        self.device, self.dtype = placement.device, placement.dtype
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.extractor: Any = load_processor(AutoFeatureExtractor, resolved)
        self.model: Any = load_pretrained(AutoModelForAudioClassification, resolved, self.dtype, self.device)
        self.labels = _labels(self.model.config, model)
        self.scores = _scoring(self.model.config) if scores == "auto" else scores
        self.selector = LabelSelector(
            self.labels,
            top_k=top_k,
            threshold=threshold,
            min_ratio=min_ratio,
            combine="sum" if self.scores == "softmax" else "max",
            things=things,
            name="audio-tagger",
        )

    @torch.inference_mode()
    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """One list of captions per window, of any length and rate; a window without samples has no captions."""
        rows = combine_scales(windows, self._score, softmax=self.scores == "softmax")
        return [
            [] if row is None else self.selector.captions(row, window, "")
            for window, row in zip(windows, rows, strict=True)
        ]

    def _score(self, audios: Sequence[tuple[AudioWindow, Waveform]]) -> list[Scores | None]:
        """Label scores of each audio; None for audio without samples."""
        rate = int(self.extractor.sampling_rate)
        sounds = [crop_or_pad(audio, rate, self._longest(rate), round(_SHORTEST * rate)) for _, audio in audios]
        scores: list[Scores | None] = [None] * len(sounds)
        for length in sorted({len(sound) for sound in sounds}):
            alike = [sound if len(sound) == length else sound[:0] for sound in sounds]
            for batch in audio_batches(alike, self.batch_size):
                for i, row in zip(batch, self._run([sounds[i] for i in batch]), strict=True):
                    scores[i] = self._checked(row, audios[i][0])
        return scores

    def _run(self, sounds: Sequence[Samples]) -> Scores:
        """Scores `[sounds, labels]` of sounds of one length."""
        rate = int(self.extractor.sampling_rate)
        features = self.extractor(list(sounds), sampling_rate=rate, return_tensors="pt")
        name = "input_values" if "input_values" in features else "input_features"
        logits = self.model(**{name: features[name].to(self.device, self.dtype)}).logits.float()
        probabilities = logits.sigmoid() if self.scores == "sigmoid" else logits.softmax(dim=-1)
        scores: Scores = probabilities.cpu().numpy()
        return scores

    def _longest(self, rate: int) -> int:
        """Samples that the extractor takes: Whisper's are counted by it, AST's are its frames of 10 ms."""
        if (samples := getattr(self.extractor, "n_samples", None)) is not None:
            return int(samples)
        if (frames := getattr(self.extractor, "max_length", None)) is not None:
            return (int(frames) - 1) * 160 + 400
        return round(_LONGEST * rate)

    def _checked(self, scores: Scores, window: AudioWindow) -> Scores:
        if not np.isfinite(scores).all():
            raise InvalidOutputError(
                f"the audio tagger '{self._ref}' gave scores that are not finite for the window from {window.start:g} "
                f"to {window.end:g} s; try dtype float32, or another copy of the model"
            )
        return scores


def _labels(config: Any, ref: str) -> list[str]:
    """The label texts in the order of the logits; ModelError where a checkpoint has none but numbers."""
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    if all(label == f"LABEL_{i}" for i, label in enumerate(labels)):
        raise ModelError(
            f"the model '{ref}' does not name its {len(labels)} labels; write them into id2label of its config.json"
        )
    return labels


def _scoring(config: Any) -> str:
    if config.problem_type == "multi_label_classification":
        return "sigmoid"
    if config.problem_type is None and config.num_labels == _AUDIOSET_LABELS:
        return "sigmoid"
    return "softmax"
