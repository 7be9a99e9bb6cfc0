"""A transformers chat model as translator: any causal LM that has a chat template.

Library traps that are handled here: decoder-only models must be padded on the left; a checkpoint's own sampling
settings (temperature, repetition penalty) would make answers random or break the repetition that JSON is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openavs.errors import InputError
from openavs.models.catalog import stored_dtype
from openavs.models.device import resolve_device, resolve_language_dtype
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.stages.translators.chat import MAX_FRAMES, MAX_RUNS, ChatQuestion, ChatTranslator
from openavs.stages.translators.chat_template import chat_tokenizer, to_tokens, token_budget
from openavs.stages.translators.parsing import TOO_LONG, ParseError
from openavs.stages.translators.prompting import MAX_PHRASES


class LlmTranslator(ChatTranslator):
    """Asks a language model on this machine; decoding is greedy, so the same question has the same answer.

    Args:
        model: reference of a causal LM checkpoint with a chat template.
        prompt: name or path of a prompt template.
        retries: further attempts after an unusable answer.
        max_new_tokens: tokens of an answer at most; by default enough for the longest that the question allows.
        max_phrases: phrases a frame keeps.
        max_runs, max_frames: runs or frames in one question, as the prompt asks; longer clips are asked in parts.
        batch_size: questions that are answered together.
        device, dtype, offline: as everywhere; `auto` keeps a 16-bit checkpoint in 16 bits (see `language_dtype`).
    """

    def __init__(
        self,
        *,
        model: str,
        prompt: str = "default",
        retries: int = 1,
        max_new_tokens: int | None = None,
        max_phrases: int = MAX_PHRASES,
        max_runs: int = MAX_RUNS,
        max_frames: int = MAX_FRAMES,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        super().__init__(
            prompt=prompt,
            retries=retries,
            max_phrases=max_phrases,
            max_runs=max_runs,
            max_frames=max_frames,
            max_new_tokens=max_new_tokens,
        )
        if batch_size < 1:
            raise InputError(f"the translator's option 'batch_size' must be at least 1, not {batch_size}")
        self.batch_size = batch_size
        resolved = resolve(model, offline)
        placement = resolve_device(device, dtype)
        self.device, kind = placement.device, resolve_language_dtype(placement, dtype, stored_dtype(resolved.path))
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.tokenizer: Any = chat_tokenizer(load_processor(AutoTokenizer, resolved), model)
        self.model: Any = load_pretrained(AutoModelForCausalLM, resolved, kind, self.device)

    def _chat(self, questions: Sequence[ChatQuestion]) -> list[str | ParseError]:
        tokens = [to_tokens(self.tokenizer, question.messages) for question in questions]
        answers: list[str | ParseError] = [ParseError(TOO_LONG, final=True) for _ in questions]
        for new, batch in self._batches(tokens, [question.max_tokens for question in questions]):
            for i, answer in zip(batch, self._generate([tokens[i] for i in batch], new), strict=True):
                answers[i] = answer
        return answers

    def _batches(self, tokens: Sequence[Sequence[int]], most: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """The room for an answer and the positions of the questions that have it, similar lengths together.

        Questions share a batch only where their room is the same, so that none is cut for its batch mates' sake.
        """
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        rooms: dict[int, list[int]] = {}
        for i in sorted(range(len(tokens)), key=lambda i: len(tokens[i])):  # as little padding as can be
            rooms.setdefault(token_budget(len(tokens[i]), context, most[i]), []).append(i)
        rooms.pop(0, None)
        for new, positions in rooms.items():
            for start in range(0, len(positions), self.batch_size):
                yield new, positions[start : start + self.batch_size]

    @torch.inference_mode()
    def _generate(self, tokens: list[list[int]], new: int) -> list[str]:
        batch = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.device)
        produced = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=new,
            pad_token_id=self.tokenizer.pad_token_id,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
        )
        answers = produced[:, batch["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]
