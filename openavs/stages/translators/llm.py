"""Transformers chat models as translators: any causal LM with a chat template, and vision language models.

A vision language model sees the frames before it names what sounds in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openavs.models.catalog import stored_dtype
from openavs.models.chat_api.endpoint import TOO_LONG, ParseError
from openavs.models.device import resolve_device, resolve_language_dtype
from openavs.models.generation import GREEDY, check_chat_template, context_length, pad_left, render_chat, token_batches
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.models.vision_chat import MAX_PIXELS, VisionModel
from openavs.stages.prompting import Conversation
from openavs.stages.translators.chat import (
    ChatRequest,
    ChatTranslator,
    answer_in_groups,
    check_at_least,
)


class LlmTranslator(ChatTranslator):
    """Runs a language model in this process; decoding is greedy, so equal requests have equal answers.

    Args:
        model: reference of a causal LM checkpoint with a chat template.
        prompt, max_reprompts, max_new_tokens, max_phrases, max_runs, max_frames: see `ChatTranslator`.
        batch_size: chat requests per forward pass.
        device, dtype, offline: as for all backends; `auto` keeps a 16-bit checkpoint in 16 bits (see
            `resolve_language_dtype`).
    """

    option_classes = (ChatTranslator,)

    def __init__(
        self,
        *,
        model: str,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        **chat: Any,
    ) -> None:
        super().__init__(**chat)
        check_at_least(1, batch_size=batch_size)
        self.batch_size = batch_size
        resolved = resolve(model, offline)
        placement = resolve_device(device, dtype)
        self.device = placement.device
        model_dtype = resolve_language_dtype(placement, dtype, stored_dtype(resolved.path))
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.tokenizer: Any = chat_tokenizer(load_processor(AutoTokenizer, resolved), model)
        self.model: Any = load_pretrained(AutoModelForCausalLM, resolved, model_dtype, self.device)

    def _chat(self, requests: Sequence[ChatRequest]) -> list[str | ParseError]:
        prompts = [tokenize_chat(self.tokenizer, request.messages) for request in requests]
        answers: list[str | ParseError] = [ParseError(TOO_LONG, final=True) for _ in requests]
        lengths, limits = [len(ids) for ids in prompts], [request.max_tokens for request in requests]
        for max_new, batch in token_batches(lengths, limits, context_length(self.model), self.batch_size):
            for i, answer in zip(batch, self._generate([prompts[i] for i in batch], max_new), strict=True):
                answers[i] = answer
        return answers

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], max_new: int) -> list[str]:
        batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.device)
        generated = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new,
            pad_token_id=self.tokenizer.pad_token_id,
            **GREEDY,
        )
        answers = generated[:, batch["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]


# ------------------------------------------------------------------------------------------------------- chat templates


def chat_tokenizer(tokenizer: Any, ref: str) -> Any:
    """Configure a tokenizer for generation: padding on the left, with a pad token.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    check_chat_template(tokenizer.chat_template, ref)
    return pad_left(tokenizer)


def tokenize_chat(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Return the token ids of a conversation up to the beginning of the answer."""
    # The template has already added the special tokens.
    return list(tokenizer(render_chat(tokenizer, conversation), add_special_tokens=False)["input_ids"])


class VlmTranslator(ChatTranslator):
    """Runs an image-text-to-text model in this process; a request holds the captions and a contact sheet of the frames.

    Decoding is greedy, so equal requests have equal answers.

    Args:
        model: reference of an image-text-to-text checkpoint with a chat template, such as Qwen3-VL.
        prompt, max_reprompts, max_new_tokens, max_phrases, max_runs, max_frames: see `ChatTranslator`; the prompt has a
            [picture] section.
        max_pixels: maximum height times width of a contact sheet.
        batch_size: chat requests per forward pass; a batch that does not fit into memory is halved.
        device, dtype, offline: as for all backends; `auto` keeps a 16-bit checkpoint in 16 bits (see
            `resolve_language_dtype`).

    Raises:
        InputError: an option outside its range, or a prompt that does not mention the contact sheet.
        ModelError: the checkpoint is unavailable or of another kind.
    """

    contact_sheet = True
    option_classes = (ChatTranslator,)

    def __init__(
        self,
        *,
        model: str,
        max_pixels: int = MAX_PIXELS,
        batch_size: int = 4,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        **chat: Any,
    ) -> None:
        super().__init__(True, **chat)
        self.vision = VisionModel(
            model, batch_size=batch_size, max_pixels=max_pixels, device=device, dtype=dtype, offline=offline
        )
        self.models = self.vision.models

    def _chat(self, requests: Sequence[ChatRequest]) -> list[str | ParseError]:
        return answer_in_groups(self.vision, requests, 8 * self.vision.batch_size)
