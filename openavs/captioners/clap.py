"""CLAP (transformers ClapModel) as a zero-shot tagger: which entries of a vocabulary does a sound resemble most?

Library traps that are handled here: models without feature fusion need `rand_trunc` features although the extractor's
default is `fusion`; both crop long sounds at random, so ours are cut to their centre first; and a fused model's
extractor marks one window of a batch, drawn at random, as long, so here each window counts as it would alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
from transformers import ClapModel, ClapProcessor

from openavs.device import resolve_device
from openavs.hub import load_pretrained, load_processor, resolve
from openavs.types import Caption, InputError, OpenAVSError, Window
from openavs.vocabulary import load_vocabulary

logger = logging.getLogger(__name__)


class ClapCaptioner:
    """Hears vocabulary entries.

    The score of an entry is the softmax over the whole vocabulary of CLAP's scaled cosine, so scores of one window sum
    to one. Up to `top_k` captions a window, each of at least `threshold`, best first; `question` tells the template.

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
        _check_options(top_k, threshold, template, batch_size)
        self.vocabulary = load_vocabulary(vocabulary)
        self.top_k, self.threshold, self.template, self.batch_size = top_k, threshold, template, batch_size
        resolved = resolve(model, offline)
        placement = resolve_device(device, "float32" if dtype == "auto" else dtype)
        self.device, self.dtype = placement.device, placement.dtype
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.processor: Any = load_processor(ClapProcessor, resolved)
        self.model: Any = load_pretrained(ClapModel, resolved, self.dtype, self.device)
        self._texts: torch.Tensor | None = None
        self._labels: dict[tuple[str, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def caption(self, windows: Sequence[Window]) -> list[list[Caption]]:
        """One list of captions per window; windows of any length and rate, those without samples hear nothing."""
        sounds = [self._prepare(window) for window in windows]
        captions: list[list[Caption]] = [[] for _ in windows]
        audible = [i for i, sound in enumerate(sounds) if len(sound)]
        for start in range(0, len(audible), self.batch_size):
            batch = audible[start : start + self.batch_size]
            scores = self._scores([sounds[i] for i in batch], [windows[i] for i in batch])
            for i, row in zip(batch, scores, strict=True):
                captions[i] = self._captions(row, windows[i])
        return captions

    @torch.inference_mode()
    def text_similarity(self, phrases: Sequence[str], labels: Sequence[str]) -> npt.NDArray[np.float32]:
        """Cosine similarities `[phrases, labels]` of what the texts would sound like (for closed vocabularies)."""
        key = tuple(labels)
        if key not in self._labels:
            self._labels[key] = self._embed_texts([self.template.replace("{}", label) for label in labels])
        asked = self._embed_texts([self.template.replace("{}", phrase) for phrase in phrases])
        similarity: npt.NDArray[np.float32] = (asked @ self._labels[key].T).float().cpu().numpy()
        return similarity

    def _prepare(self, window: Window) -> npt.NDArray[np.float32]:
        """The samples at the model's rate, no longer than it takes."""
        extractor = self.processor.feature_extractor
        samples = window.audio.samples
        if window.audio.rate != extractor.sampling_rate and len(samples):
            samples = soxr.resample(samples, window.audio.rate, extractor.sampling_rate)
        surplus = len(samples) - int(extractor.nb_max_samples)
        if surplus > 0:  # the centre, always: the extractor would draw a place at random
            samples = samples[surplus // 2 : surplus // 2 + int(extractor.nb_max_samples)]
        return np.asarray(samples, dtype=np.float32)

    def _scores(self, sounds: Sequence[npt.NDArray[np.float32]], windows: Sequence[Window]) -> npt.NDArray[np.float32]:
        """Probabilities `[windows, vocabulary]`, summing to one along the vocabulary."""
        logits = self._embed_sounds(sounds) @ self._text_embeddings().T * self.model.logit_scale_a.exp()
        finite = torch.isfinite(logits).all(dim=1).tolist()
        if not all(finite):
            window = windows[finite.index(False)]
            raise OpenAVSError(
                f"the CLAP model '{self._ref}' gave scores that are not finite for the window from {window.start:g} "
                f"to {window.end:g} s; try dtype float32, or another copy of the model"
            )
        scores: npt.NDArray[np.float32] = logits.float().softmax(dim=-1).cpu().numpy()
        return scores

    def _embed_sounds(self, sounds: Sequence[npt.NDArray[np.float32]]) -> torch.Tensor:
        """Unit vectors `[windows, d]`."""
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

    def _text_embeddings(self) -> torch.Tensor:
        """Unit vectors `[vocabulary, d]`, computed once for an instance."""
        if self._texts is None:
            texts = [self.template.replace("{}", entry) for entry in self.vocabulary]
            parts = [self._embed_texts(texts[i : i + self.batch_size]) for i in range(0, len(texts), self.batch_size)]
            self._texts = torch.cat(parts)
        return self._texts

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

    def _captions(self, scores: npt.NDArray[np.float32], window: Window) -> list[Caption]:
        best = np.argsort(-scores, kind="stable")[: self.top_k]
        return [
            Caption(self.vocabulary[i], float(scores[i]), window.start, window.end, self.template)
            for i in best
            if scores[i] >= self.threshold
        ]


def _pooled(output: Any) -> torch.Tensor:
    """The embedding: newer releases return an output object, older ones the tensor itself."""
    embedding: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return embedding


def _check_options(top_k: int, threshold: float, template: str, batch_size: int) -> None:
    if top_k < 1 or batch_size < 1:
        raise InputError(f"clap: top_k and batch_size are at least 1, not {top_k} and {batch_size}")
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"clap: threshold lies in [0, 1], not {threshold}")
    if template.count("{}") != 1:
        raise InputError(f"clap: template needs {{}} once, where the word goes, not '{template}'")
