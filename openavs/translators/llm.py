"""A transformers chat model as translator: any causal LM that has a chat template.

Library traps that are handled here: decoder-only models must be padded on the left; a checkpoint's own sampling
settings (temperature, repetition penalty) would make answers random or break the repetition that JSON is made of;
some tokenizers have no pad token; some chat templates refuse a system turn; thinking models think unless told not to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from openavs.device import resolve_device
from openavs.hub import load_pretrained, load_processor, resolve
from openavs.translators.answers import AnswerError
from openavs.translators.chat import ChatTranslator, Conversation
from openavs.translators.messages import MAX_PHRASES
from openavs.types import InputError, ModelError

logger = logging.getLogger(__name__)

TOO_LONG = "the question is longer than the model's context"
_ROOM = 64


class LlmTranslator(ChatTranslator):
    """Asks a language model on this machine; decoding is greedy, so the same question has the same answer.

    Args:
        model: reference of a causal LM checkpoint with a chat template.
        prompt: name or path of a prompt template.
        retries: further attempts after an unusable answer.
        max_new_tokens: tokens of an answer; five frames take about 60, sixty about 500.
        max_phrases: phrases a frame keeps.
        max_frames: frames in one question; longer clips are asked in parts.
        batch_size: questions that are answered together.
        device, dtype, offline: as everywhere.
    """

    def __init__(
        self,
        *,
        model: str,
        prompt: str = "default",
        retries: int = 1,
        max_new_tokens: int = 512,
        max_phrases: int = MAX_PHRASES,
        max_frames: int = 60,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        super().__init__(prompt=prompt, retries=retries, max_phrases=max_phrases, max_frames=max_frames)
        if min(max_new_tokens, batch_size) < 1:
            raise InputError("the translator's options 'max_new_tokens' and 'batch_size' must be at least 1")
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        resolved = resolve(model, offline)
        placement = resolve_device(device, dtype)
        self.device = placement.device
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.tokenizer: Any = _tokenizer(load_processor(AutoTokenizer, resolved), model)
        self.model: Any = load_pretrained(AutoModelForCausalLM, resolved, placement.dtype, placement.device)

    def _chat(self, conversations: Sequence[Conversation]) -> list[str | AnswerError]:
        tokens = [self._tokens(conversation) for conversation in conversations]
        answers: list[str | AnswerError] = [AnswerError(TOO_LONG) for _ in conversations]
        for room, batch in self._batches(tokens):
            for i, answer in zip(batch, self._generate([tokens[i] for i in batch], room), strict=True):
                answers[i] = answer
        return answers

    def _tokens(self, conversation: Conversation) -> list[int]:
        text = self._render(conversation)
        # The template has written the special tokens already.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, conversation: Conversation) -> str:
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            return str(self.tokenizer.apply_chat_template(conversation, **options))
        except TemplateError as error:
            if conversation[0]["role"] != "system":
                raise ModelError(f"the model's chat template fails ({error}); use another model") from error
        system, user, *rest = conversation
        merged = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
        return self._render([merged, *rest])

    def _batches(self, tokens: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """The room for an answer and the positions of the questions that have it, similar lengths together.

        Questions share a batch only where their room is the same, so that none is cut for its batch mates' sake.
        """
        rooms: dict[int, list[int]] = {}
        for i in sorted(range(len(tokens)), key=lambda i: len(tokens[i])):  # as little padding as can be
            rooms.setdefault(self._room(len(tokens[i])), []).append(i)
        rooms.pop(0, None)
        for room, positions in rooms.items():
            for start in range(0, len(positions), self.batch_size):
                yield room, positions[start : start + self.batch_size]

    def _room(self, length: int) -> int:
        """Tokens that an answer may have after a question of this length, in steps of 64 where the model is small."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is None or length + self.max_new_tokens <= context:
            return self.max_new_tokens
        return max(0, (int(context) - length) // _ROOM * _ROOM)

    @torch.inference_mode()
    def _generate(self, tokens: list[list[int]], room: int) -> list[str]:
        batch = self.tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(self.device)
        produced = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=room,
            pad_token_id=self.tokenizer.pad_token_id,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
        )
        new = produced[:, batch["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]


def _tokenizer(tokenizer: Any, ref: str) -> Any:
    """The tokenizer, padding on the left; ModelError where it has no chat template or nothing to pad with."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"the model '{ref}' has no chat template, so it cannot be asked; use an instruction-tuned (chat) checkpoint"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        # Padding is masked out, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer
