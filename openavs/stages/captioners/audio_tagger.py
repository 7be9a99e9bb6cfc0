"""Audio classifier as a captioner: AST and every other head of transformers' AutoModelForAudioClassification.

Adaptations to the library: extractors cut off the end of long sounds, so sounds are cropped to their center first;
models of the wav2vec kind change their output with the padding for a longer sound of the batch, so only sounds of the
same length share a batch; and AudioSet checkpoints do not state that their labels are not exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from openavs.errors import InputError, ModelError
from openavs.models.device import resolve_device
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.stages.captioners.base import Samples, audio_batches, check_finite, crop_or_pad
from openavs.stages.captioners.label_selection import LabelSelector, Scores, combine_scales
from openavs.structures.types import AudioWindow, Caption, Waveform

_AUDIOSET_LABELS = 527
_MAX_SECONDS = 30.0  # for models without a limit
_MIN_SECONDS = 0.1  # some extractors make no frame of less


class AudioTaggerCaptioner:
    """Captions windows with the labels that a classifier was trained on.

    Args:
        model: reference of an audio classification checkpoint.
        top_k, threshold, min_ratio, things: see `LabelSelector`.
        scores: `sigmoid` (labels are independent), `softmax` (labels are exclusive, their scores sum to one) or `auto`:
            the checkpoint's `problem_type`; without one, sigmoid for AudioSet's 527 labels and softmax for others.
        batch_size: windows per forward pass.
        device, dtype, offline: as for all backends; `auto` is float32 here, a tagger's share of the time is small.

    Raises:
        InputError: an option outside its range.
        ModelError: the checkpoint is unavailable, of another kind, or does not name its labels.
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
        self.scores = _score_function(self.model.config) if scores == "auto" else scores
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
        """Return one list of captions per window, of any length and rate; a window without samples has none."""
        rows = combine_scales(windows, self._score, softmax=self.scores == "softmax")
        return [
            [] if row is None else self.selector.captions(row, window, "")
            for window, row in zip(windows, rows, strict=True)
        ]

    def _score(self, audios: Sequence[tuple[AudioWindow, Waveform]]) -> list[Scores | None]:
        """Label scores of each audio; None for audio without samples."""
        rate = int(self.extractor.sampling_rate)
        longest, shortest = self._max_samples(rate), round(_MIN_SECONDS * rate)
        sounds = [crop_or_pad(audio, rate, longest, shortest) for _, audio in audios]
        scores: list[Scores | None] = [None] * len(sounds)
        for length in sorted({len(sound) for sound in sounds}):
            same_length = [sound if len(sound) == length else sound[:0] for sound in sounds]
            for batch in audio_batches(same_length, self.batch_size):
                rows = self._run([sounds[i] for i in batch])
                finite = [bool(np.isfinite(row).all()) for row in rows]
                check_finite(finite, [audios[i][0] for i in batch], f"audio tagger '{self._ref}' gave scores")
                for i, row in zip(batch, rows, strict=True):
                    scores[i] = row
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

    def _max_samples(self, rate: int) -> int:
        """Samples that the extractor takes: Whisper's states them, AST's states frames of 10 ms."""
        if (samples := getattr(self.extractor, "n_samples", None)) is not None:
            return int(samples)
        if (frames := getattr(self.extractor, "max_length", None)) is not None:
            return (int(frames) - 1) * 160 + 400  # hop and window of 10 and 25 ms at 16 kHz
        return round(_MAX_SECONDS * rate)


def _labels(config: Any, ref: str) -> list[str]:
    """The label texts in the order of the logits; ModelError if a checkpoint has only numbers."""
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    if all(label == f"LABEL_{i}" for i, label in enumerate(labels)):
        raise ModelError(
            f"the model '{ref}' does not name its {len(labels)} labels; write them into id2label of its config.json"
        )
    return labels


def _score_function(config: Any) -> str:
    if config.problem_type == "multi_label_classification":
        return "sigmoid"
    if config.problem_type is None and config.num_labels == _AUDIOSET_LABELS:
        return "sigmoid"
    return "softmax"
