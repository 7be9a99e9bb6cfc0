"""Audio language model as a captioner: Qwen2-Audio, Audio Flamingo 3 and Next, Qwen Omni thinkers, Voxtral.

A window's audio is encoded once whatever the number of questions; its vectors are inserted into every question's
prompt. The paper needs fifteen calls of Pengi per clip for three questions per second (OpenAVS, section 3); here the
windows and questions of a clip are one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers

from openavs.errors import InputError
from openavs.models.catalog import stored_dtype
from openavs.models.device import resolve_device, resolve_language_dtype
from openavs.models.generation import GREEDY
from openavs.models.hub import load_pretrained, resolve
from openavs.stages.captioners.audio_lm_specs import find_model_spec, load_audio_processor, tokenize_question
from openavs.stages.captioners.base import (
    Samples,
    audio_batches,
    check_finite,
    crop_or_pad,
    one_line,
    validate_questions,
)
from openavs.structures.types import AudioWindow, Caption

PAPER_QUESTIONS = ("Generate audio caption", "Generate metadata", "This is a sound of")
"""Questions of OpenAVS (table 3); one, two or all three of them are its prompt consistency."""

_MIN_SECONDS = 0.1  # the encoders make no vector of less


class _Prompt(NamedTuple):
    """Token embeddings of a question before `[h, D]` and after `[t, D]` the audio."""

    question: str
    head: torch.Tensor
    tail: torch.Tensor


class AudioLmCaptioner:
    """Captions windows with the answers of an audio language model; decoding is greedy and thus deterministic.

    A window has one caption per question, in the order of the questions, without a score; an answer without words is
    left out. A window longer than the model's input (30 s) is cropped to its center.

    Args:
        model: reference of a checkpoint: Qwen2-Audio, Audio Flamingo 3 or Next, Qwen2.5-Omni, Qwen3-Omni or Voxtral.
        questions: prompts for each window; the paper's three by default.
        max_new_tokens: maximum tokens of an answer.
        batch_size: windows per forward pass; the language model processes each once per question.
        device, dtype, offline: as for all backends; `auto` keeps a 16-bit checkpoint in 16 bits (see
            `resolve_language_dtype`).

    Raises:
        InputError: an option outside its range.
        ModelError: the checkpoint is unavailable or of another kind.
    """

    def __init__(
        self,
        *,
        model: str,
        questions: Sequence[str] = PAPER_QUESTIONS,
        max_new_tokens: int = 64,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        self.questions = validate_questions("audio-llm", questions)
        if max_new_tokens < 1 or batch_size < 1:
            raise InputError(
                f"audio-llm: max_new_tokens and batch_size are at least 1, not {max_new_tokens} and {batch_size}"
            )
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        resolved = resolve(model, offline)
        self.spec = find_model_spec(resolved)
        placement = resolve_device(device, dtype)
        self.device = placement.device
        self.dtype = resolve_language_dtype(placement, dtype, stored_dtype(resolved.path))
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.processor = load_audio_processor(self.spec, resolved)
        model_class = getattr(transformers, self.spec.model_class)
        self.model: Any = load_pretrained(model_class, resolved, self.dtype, self.device)
        self._audio_config: Any = self.model.config.audio_config
        self._prompts = [self._prompt(question) for question in self.questions]

    @torch.inference_mode()
    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """Return one list of captions per window, of any length and rate; a window without samples has none."""
        extractor = self.processor.extractor
        rate, longest = int(extractor.sampling_rate), int(extractor.n_samples)
        sounds = [crop_or_pad(window.audio, rate, longest, round(_MIN_SECONDS * rate)) for window in windows]
        captions: list[list[Caption]] = [[] for _ in windows]
        for batch in audio_batches(sounds, self.batch_size):
            answers = iter(self._answer(self._encode([sounds[i] for i in batch], [windows[i] for i in batch])))
            for i in batch:
                captions[i] = self._captions([next(answers) for _ in self._prompts], windows[i])
        return captions

    def _encode(self, sounds: Sequence[Samples], windows: Sequence[AudioWindow]) -> list[torch.Tensor]:
        """Vectors `[n, D]` of each sound for the language model: the only pass through the audio encoder."""
        extractor = self.processor.extractor
        features = extractor(
            list(sounds),
            sampling_rate=extractor.sampling_rate,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = features["attention_mask"]
        inputs = features["input_features"].to(self.device, self.dtype)
        flat = self.spec.vectors(self.model, inputs, mask.to(self.device))
        counts = [self.spec.count(frames, self._audio_config) for frames in mask.sum(-1).tolist()]
        vectors = torch.split(flat, counts)
        finite = torch.stack([torch.isfinite(part).all() for part in vectors]).tolist()
        check_finite(finite, windows, f"audio model '{self._ref}' gave vectors")
        return list(vectors)

    def _answer(self, vectors: Sequence[torch.Tensor]) -> list[str]:
        """Answers to all questions about the first sound, then about the second, and so on."""
        rows = [torch.cat([prompt.head, part, prompt.tail]) for part in vectors for prompt in self._prompts]
        longest = max(len(row) for row in rows)
        embeddings = torch.stack([_padded(row, longest) for row in rows])
        mask = torch.stack([_padded(torch.ones(len(row), dtype=torch.long), longest) for row in rows])
        generated = self.model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask.to(self.device),
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self._pad_token,
            **GREEDY,
        )
        return [str(text) for text in self.processor.tokenizer.batch_decode(generated, skip_special_tokens=True)]

    def _prompt(self, question: str) -> _Prompt:
        placeholder = int(self.model.config.audio_token_id)
        parts = tokenize_question(self.spec, self.processor, question, placeholder, self._ref)
        with torch.inference_mode():
            table = self.model.get_input_embeddings()
            head, tail = (table(torch.tensor(ids, dtype=torch.long, device=self.device)) for ids in parts)
        return _Prompt(question, head, tail)

    @property
    def _pad_token(self) -> int:
        """Token after answers that end early; decoding skips it."""
        ends = self.model.generation_config.eos_token_id
        candidates = [self.processor.tokenizer.pad_token_id, *(ends if isinstance(ends, list) else [ends]), 0]
        return next(int(token) for token in candidates if token is not None)

    def _captions(self, answers: Sequence[str], window: AudioWindow) -> list[Caption]:
        texts = [(prompt.question, one_line(answer)) for prompt, answer in zip(self._prompts, answers, strict=True)]
        return [Caption(text, None, window.start, window.end, question) for question, text in texts if text]


def _padded(row: torch.Tensor, length: int) -> torch.Tensor:
    """The row after zeros: decoder-only models need padding on the left."""
    return torch.cat([row.new_zeros(length - len(row), *row.shape[1:]), row])
