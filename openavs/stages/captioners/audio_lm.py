"""An audio language model that is asked about each window: Qwen2-Audio, Audio Flamingo 3, Qwen Omni thinkers, Voxtral.

A window's sound is encoded once whatever the number of questions; its vectors are put into every question's prompt. The
paper asked Pengi three questions a second with fifteen calls a clip (OpenAVS, section 3); here a clip's windows and
questions are one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers

from openavs.errors import InputError, InvalidOutputError
from openavs.models.catalog import stored_dtype
from openavs.models.device import resolve_device, resolve_language_dtype
from openavs.models.hub import load_pretrained, resolve
from openavs.stages.captioners.audio import Samples, audio_batches, crop_or_pad
from openavs.stages.captioners.audio_lm_specs import find_model_spec, load_reader, prompt_tokens
from openavs.structures.types import AudioWindow, Caption

logger = logging.getLogger(__name__)

PAPER_QUESTIONS = ("Generate audio caption", "Generate metadata", "This is a sound of")
"""What OpenAVS asks (table 3); one, two or all three of them is its prompt consistency."""

_LONGEST = 300  # characters of a caption
_SHORTEST = 0.1  # seconds: of less, the encoders would make no vector at all


class _Prompt(NamedTuple):
    """A question's token embeddings before `[h, D]` and after `[t, D]` the sound."""

    question: str
    head: torch.Tensor
    tail: torch.Tensor


class AudioLmCaptioner:
    """Asks an audio language model; decoding is greedy, so the same window has the same captions.

    A window has one caption for each question, in the order of the questions, without a score; an answer without words
    is left out. Of a window longer than the model hears at once (30 s) the centre is heard.

    Args:
        model: reference of a checkpoint: Qwen2-Audio, Audio Flamingo 3, Qwen2.5-Omni, Qwen3-Omni or Voxtral.
        questions: what to ask about each window; the paper's three by default.
        max_new_tokens: tokens of an answer at most.
        batch_size: windows that go through the model together; the language model sees each once per question.
        device, dtype, offline: as everywhere; `auto` keeps a 16-bit checkpoint in 16 bits (see `language_dtype`).
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
        self.questions = _checked(questions)
        if max_new_tokens < 1 or batch_size < 1:
            raise InputError(
                f"audio-llm: max_new_tokens and batch_size are at least 1, not {max_new_tokens} and {batch_size}"
            )
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        resolved = resolve(model, offline)
        self.family = find_model_spec(resolved)
        placement = resolve_device(device, dtype)
        self.device, self.dtype = (
            placement.device,
            resolve_language_dtype(placement, dtype, stored_dtype(resolved.path)),
        )
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.reader = load_reader(self.family, resolved)
        model_class = getattr(transformers, self.family.model_class)
        self.model: Any = load_pretrained(model_class, resolved, self.dtype, self.device)
        self._audio_config: Any = self.model.config.audio_config
        self._prompts = [self._prompt(question) for question in self.questions]

    @torch.inference_mode()
    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """One list of captions per window; windows of any length and rate, those without samples hear nothing."""
        extractor = self.reader.extractor
        rate, longest = int(extractor.sampling_rate), int(extractor.n_samples)
        sounds = [crop_or_pad(window.audio, rate, longest, round(_SHORTEST * rate)) for window in windows]
        captions: list[list[Caption]] = [[] for _ in windows]
        for batch in audio_batches(sounds, self.batch_size):
            vectors = self._encode([sounds[i] for i in batch], [windows[i] for i in batch])
            answers = iter(self._answer(vectors))
            for i in batch:
                captions[i] = self._captions([next(answers) for _ in self._prompts], windows[i])
        return captions

    def _encode(self, sounds: Sequence[Samples], windows: Sequence[AudioWindow]) -> list[torch.Tensor]:
        """Each sound's vectors `[n, D]` for the language model: the only pass through the audio encoder."""
        extractor = self.reader.extractor
        features = extractor(
            list(sounds),
            sampling_rate=extractor.sampling_rate,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = features["attention_mask"]
        inputs = features["input_features"].to(self.device, self.dtype)
        flat = self.family.vectors(self.model, inputs, mask.to(self.device))
        counts = [self.family.count(frames, self._audio_config) for frames in mask.sum(-1).tolist()]
        vectors = torch.split(flat, counts)
        finite = torch.stack([torch.isfinite(part).all() for part in vectors]).tolist()
        for window, whole in zip(windows, finite, strict=True):
            if not whole:
                raise InvalidOutputError(
                    f"the audio model '{self._ref}' gave vectors that are not finite for the window from "
                    f"{window.start:g} to {window.end:g} s; try dtype float32 or bfloat16, or another copy of the model"
                )
        return list(vectors)

    def _answer(self, vectors: Sequence[torch.Tensor]) -> list[str]:
        """The answers to all questions about the first sound, then the second, and so on."""
        rows = [torch.cat([prompt.head, part, prompt.tail]) for part in vectors for prompt in self._prompts]
        longest = max(len(row) for row in rows)
        embeddings = torch.stack([_padded(row, longest) for row in rows])
        mask = torch.stack([_padded(torch.ones(len(row), dtype=torch.long), longest) for row in rows])
        produced = self.model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask.to(self.device),
            max_new_tokens=self.max_new_tokens,
            pad_token_id=self._pad,
            # The checkpoints' own settings sample and penalise repetition.
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
        )
        return [str(text) for text in self.reader.tokenizer.batch_decode(produced, skip_special_tokens=True)]

    def _prompt(self, question: str) -> _Prompt:
        placeholder = int(self.model.config.audio_token_id)
        parts = prompt_tokens(self.family, self.reader, question, placeholder, self._ref)
        with torch.inference_mode():
            table = self.model.get_input_embeddings()
            head, tail = (table(torch.tensor(ids, dtype=torch.long, device=self.device)) for ids in parts)
        return _Prompt(question, head, tail)

    @property
    def _pad(self) -> int:
        """What fills up answers that ended early; it is skipped when they become text."""
        ends = self.model.generation_config.eos_token_id
        candidates = [self.reader.tokenizer.pad_token_id, *(ends if isinstance(ends, list) else [ends]), 0]
        return next(int(token) for token in candidates if token is not None)

    def _captions(self, answers: Sequence[str], window: AudioWindow) -> list[Caption]:
        texts = [(prompt.question, one_line(answer)) for prompt, answer in zip(self._prompts, answers, strict=True)]
        return [Caption(text, None, window.start, window.end, question) for question, text in texts if text]


def _padded(row: torch.Tensor, length: int) -> torch.Tensor:
    """The row with zeros before it: decoder-only models must be padded on the left."""
    return torch.cat([row.new_zeros(length - len(row), *row.shape[1:]), row])


def one_line(text: str, longest: int = _LONGEST) -> str:
    """The text on one line, cut at a word where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest + 1].rsplit(" ", 1)[0][:longest]


def _checked(questions: Sequence[str]) -> tuple[str, ...]:
    asked = tuple(questions)
    if not asked or not all(isinstance(question, str) and question.strip() for question in asked):
        raise InputError("audio-llm: questions is a list of at least one text, each with words in it")
    if len(set(asked)) < len(asked):
        raise InputError("audio-llm: questions holds the same question twice; each is asked once")
    return asked
