"""PE-A-Frame (transformers PeAudioFrameLevelModel): scores of a vocabulary 25 times a second, as events.

The model's codec strides over the samples without padding before them, and every stride is centered, so value i is that
of the samples from i to i + 1 hops. The model was trained on pieces of up to 30 s. Longer sound is cut into pieces of
equal length that overlap, and scores fade from one piece to the next in the middle of the overlap. A batch holds pieces
of one length only, since the codec would see the padding of the others.

Adaptation to the library: `get_text_audio_embeds` of 5.23 requests hidden states that it does not get; texts are
encoded as `forward` does it (modeling_pe_audio.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import soxr
import torch
from transformers import PeAudioFrameLevelModel, PeAudioProcessor

from openavs.errors import InputError, InvalidOutputError
from openavs.models.device import resolve_device, run_with_oom_backoff
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.stages.captioners.base import Samples
from openavs.stages.captioners.event_detection import EventDetector
from openavs.stages.captioners.label_selection import Scores
from openavs.stages.captioners.zero_shot import check_templates
from openavs.stages.vocabulary import load_vocabulary
from openavs.structures.types import Event, Waveform
from openavs.utils.concurrency import batched

_BLOCK_SECONDS = 10.0  # of audio that is resampled at once
_TEXT_BATCH = 32


class PeAFrameCaptioner:
    """Finds when each entry of a vocabulary sounds; `EventDetector` defines the events.

    The score of an entry is the sigmoid of the model's logit, the mean over the templates, so entries are independent
    of each other and silence has none.

    Args:
        model: reference of a checkpoint.
        vocabulary: `audioset-things`, `audioset`, a text file with one entry per line, or the entries themselves.
        threshold, off_threshold, min_seconds, merge_seconds, top_k, things: see `EventDetector`.
        template: one or several sentences, each with one `{}` for the entry.
        piece_seconds: longest piece that the model takes at once.
        overlap_seconds: least overlap of neighboring pieces, at most a third of a piece.
        batch_size: pieces (and texts) per forward pass; halved where memory runs out.
        device, dtype, offline: as for all backends; `auto` is float32 here, since the codec was trained in it.

    Raises:
        InputError: an option outside its range.
        ModelError: the checkpoint is unavailable or of another kind.
    """

    name = "pe-a-frame"

    def __init__(
        self,
        *,
        model: str,
        vocabulary: str | Sequence[str] = "audioset-things",
        threshold: float = 0.3,
        off_threshold: float = 0.2,
        min_seconds: float = 0.12,
        merge_seconds: float = 0.4,
        top_k: int = 3,
        template: str | Sequence[str] = "{}",
        things: bool = True,
        piece_seconds: float = 30.0,
        overlap_seconds: float = 2.0,
        batch_size: int = 4,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"{self.name}: batch_size is at least 1, not {batch_size}")
        if not 1.0 <= piece_seconds < math.inf or not 0.0 <= overlap_seconds <= piece_seconds / 3:
            raise InputError(
                f"{self.name}: piece_seconds is at least 1 and overlap_seconds from 0 to a third of it, not "
                f"{piece_seconds} and {overlap_seconds}"
            )
        self.templates = check_templates(template, self.name)
        self.vocabulary = load_vocabulary(vocabulary)
        self.batch_size = batch_size
        resolved = resolve(model, offline)
        placement = resolve_device(device, "float32" if dtype == "auto" else dtype)
        self.device, self.dtype = placement.device, placement.dtype
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.processor: Any = load_processor(PeAudioProcessor, resolved)
        self.model: Any = load_pretrained(PeAudioFrameLevelModel, resolved, self.dtype, self.device)
        extractor = self.processor.feature_extractor
        self.rate, self.hop = int(extractor.sampling_rate), int(extractor.hop_length)
        self.detector = EventDetector(
            self.vocabulary,
            rate=self.rate / self.hop,
            threshold=threshold,
            off_threshold=off_threshold,
            min_seconds=min_seconds,
            merge_seconds=merge_seconds,
            top_k=top_k,
            things=things,
            name=self.name,
        )
        self._piece = max(round(piece_seconds * self.rate / self.hop), 1)  # frames
        self._overlap = round(overlap_seconds * self.rate / self.hop)
        self._vocabulary_embeddings: torch.Tensor | None = None

    def events(self, audio: Waveform) -> list[Event]:
        """Return the events of a clip by onset; none for audio without samples."""
        return self.detector.detect(self.scores(audio), audio.duration)

    def text_similarity(self, phrases: Sequence[str], labels: Sequence[str]) -> Scores:
        """Return the cosines `[phrases, labels]` of the text embeddings (for closed vocabularies)."""
        return self.embed_phrases(phrases) @ self.embed_phrases(labels).T

    @torch.inference_mode()
    def embed_phrases(self, phrases: Sequence[str]) -> Scores:
        """Return the text embeddings, unit vectors `[phrases, d]`."""
        vectors: Scores = torch.nn.functional.normalize(self._embed(phrases), dim=-1).float().cpu().numpy()
        return vectors

    @torch.inference_mode()
    def scores(self, audio: Waveform) -> Iterator[Scores]:
        """Yield the scores `[vocabulary, frames]` of successive parts of a waveform; frame i is of i to i + 1 hops.

        Raises:
            InvalidOutputError: the model gave scores that are not finite.
        """
        starts, length = self._plan(_resampled_length(audio, self.rate))
        batches = batched(self._pieces(audio, starts, length), self.batch_size, len, sys.maxsize)
        score: Callable[[Sequence[Samples]], list[Scores]] = self._score
        pieces = (scores for batch in batches for scores in run_with_oom_backoff(score, batch))
        begin, before = 0, np.zeros((len(self.vocabulary), 0), dtype=np.float32)
        for i, (start, scores) in enumerate(zip(starts, pieces, strict=True)):
            if not np.isfinite(scores).all():
                at = start * self.hop / self.rate
                raise InvalidOutputError(
                    f"the PE-A-Frame model '{self._ref}' gave scores that are not finite for the piece that begins at "
                    f"{at:g} s; try dtype float32 or another copy of the model"
                )
            faded = before.shape[1]
            share = (np.arange(faded, dtype=np.float32) + 0.5) / max(faded, 1)
            own = scores[:, begin - start :]
            own[:, :faded] = (1 - share) * before + share * own[:, :faded]
            end = starts[i + 1] - begin if i + 1 < len(starts) else own.shape[1]
            begin, before = begin + end, own[:, end:].copy()
            yield own[:, :end]

    def _plan(self, samples: int) -> tuple[list[int], int]:
        """First frames of the pieces, evenly spaced, and their common length in frames."""
        frames = -(-samples // self.hop)
        if frames <= self._piece:
            return [0] * bool(frames), frames
        count = -(-(frames - self._overlap) // (self._piece - self._overlap))
        length = -(-(frames + (count - 1) * self._overlap) // count)
        return [round(i * (frames - length) / (count - 1)) for i in range(count)], length

    def _pieces(self, audio: Waveform, starts: Sequence[int], length: int) -> Iterator[Samples]:
        """Yield the samples of the pieces; only one piece and one block are in memory."""
        blocks, first, held = _resampled(audio, self.rate), 0, np.zeros(0, dtype=np.float32)
        total = _resampled_length(audio, self.rate)
        for start in starts:
            end = min((start + length) * self.hop, total)
            while first + len(held) < end:
                # The resampler's last block may lack or exceed a sample.
                block = next(blocks, np.zeros(end - first - len(held), dtype=np.float32))
                skipped = max(start * self.hop - first, 0)
                held, first = np.concatenate([held, block])[skipped:], first + min(skipped, len(held) + len(block))
            skipped = start * self.hop - first
            held, first = held[skipped:], first + skipped
            yield held[: end - first]

    def _score(self, pieces: Sequence[Samples]) -> list[Scores]:
        """Scores `[vocabulary, frames]` of each of some pieces of one length."""
        inputs = self.processor.feature_extractor(list(pieces), sampling_rate=self.rate, return_tensors="pt")
        samples, mask = inputs["input_values"].to(self.device, self.dtype), inputs["padding_mask"].to(self.device)
        audio = self.model.get_audio_embeds(samples, mask)
        logits = (audio @ self._text_embeddings().T).transpose(1, 2)
        logits = logits * self.model.text_audio_logit_scale + self.model.text_audio_logit_bias
        return list(logits.float().sigmoid().cpu().numpy())

    def _text_embeddings(self) -> torch.Tensor:
        """Embeddings `[vocabulary, d]`, computed once per instance."""
        if self._vocabulary_embeddings is None:
            self._vocabulary_embeddings = self._embed(self.vocabulary)
        return self._vocabulary_embeddings

    def _embed(self, entries: Sequence[str]) -> torch.Tensor:
        """Embeddings `[entries, d]`: the mean over the templates, so that logits are the mean over them, too."""
        texts = [sentence.replace("{}", entry) for sentence in self.templates for entry in entries]
        batches = batched(texts, _TEXT_BATCH, len, sys.maxsize)
        embedded = torch.cat([self._embed_texts(batch) for batch in batches])
        return embedded.view(len(self.templates), len(entries), -1).mean(dim=0)

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        tokenizer, config = self.processor.tokenizer, self.model.config.text_config
        longest = min(int(tokenizer.model_max_length), int(config.max_position_embeddings))
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        hidden = self.model.text_model(**inputs, output_hidden_states=True).hidden_states[-1][:, 0]
        vectors: torch.Tensor = self.model.text_audio_head(hidden)
        return vectors


def _resampled_length(audio: Waveform, rate: int) -> int:
    return round(len(audio.samples) * rate / audio.rate)


def _resampled(audio: Waveform, rate: int) -> Iterator[Samples]:
    """Yield a waveform at `rate` Hz in blocks: a long one may be a memory map."""
    size = round(_BLOCK_SECONDS * audio.rate)
    stream = None if rate == audio.rate else soxr.ResampleStream(audio.rate, rate, 1, dtype="float32")
    for start in range(0, len(audio.samples), size):
        block = np.asarray(audio.samples[start : start + size])
        yield block if stream is None else stream.resample_chunk(block, last=start + size >= len(audio.samples))
