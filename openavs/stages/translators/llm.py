"""Transformers chat model as a translator: any causal LM with a chat template.

Adaptations to the libraries: decoder-only models need padding on the left; a checkpoint's own sampling settings
(temperature, repetition penalty) would make answers random or damage the repetition in JSON; some tokenizers have no
pad token; some chat templates refuse a system turn; thinking has to be turned off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from openavs.errors import ModelError
from openavs.models.catalog import stored_dtype
from openavs.models.chat_api.faults import TOO_LONG, ParseError
from openavs.models.device import resolve_device, resolve_language_dtype
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.stages.prompting import MAX_PHRASES, Conversation
from openavs.stages.translators.chat import MAX_FRAMES, MAX_RUNS, ChatRequest, ChatTranslator, check_at_least

_TOKEN_STEP = 64


class LlmTranslator(ChatTranslator):
    """Runs a language model in this process; decoding is greedy, so equal requests have equal answers.

    Args:
        model: reference of a causal LM checkpoint with a chat template.
        prompt, max_reprompts, max_new_tokens, max_phrases, max_runs, max_frames: see `ChatTranslator`.
        batch_size: chat requests per forward pass.
        device, dtype, offline: as for all backends; `auto` keeps a 16-bit checkpoint in 16 bits (see
            `resolve_language_dtype`).
    """

    def __init__(
        self,
        *,
        model: str,
        prompt: str = "default",
        max_reprompts: int = 1,
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
            max_reprompts=max_reprompts,
            max_phrases=max_phrases,
            max_runs=max_runs,
            max_frames=max_frames,
            max_new_tokens=max_new_tokens,
        )
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
        for max_new, batch in self._batches(prompts, [request.max_tokens for request in requests]):
            for i, answer in zip(batch, self._generate([prompts[i] for i in batch], max_new), strict=True):
                answers[i] = answer
        return answers

    def _batches(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield the maximum number of new tokens and the positions of a batch; prompts without room are left out.

        Only prompts with the same maximum share a batch, so that none is truncated because of another.
        """
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        groups: dict[int, list[int]] = {}
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):  # similar lengths: little padding
            groups.setdefault(token_budget(len(prompts[i]), context, limits[i]), []).append(i)
        groups.pop(0, None)
        for max_new, positions in groups.items():
            for start in range(0, len(positions), self.batch_size):
                yield max_new, positions[start : start + self.batch_size]

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], max_new: int) -> list[str]:
        batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.device)
        generated = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new,
            pad_token_id=self.tokenizer.pad_token_id,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
        )
        answers = generated[:, batch["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]


# ------------------------------------------------------------------------------------------------------- chat templates


def chat_tokenizer(tokenizer: Any, ref: str) -> Any:
    """Configure a tokenizer for generation: padding on the left, with a pad token.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the model '{ref}' has no chat template, so it cannot translate; use an instruction-tuned checkpoint"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        # Padding is masked, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def tokenize_chat(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Return the token ids of a conversation up to the beginning of the answer."""
    # The template has already added the special tokens.
    return list(tokenizer(render_chat(tokenizer, conversation), add_special_tokens=False)["input_ids"])


def render_chat(tokenizer: Any, conversation: Conversation) -> str:
    """Return the conversation in the model's format; a system turn that the template refuses joins the user's turn."""
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return str(tokenizer.apply_chat_template(conversation, **options))
    except TemplateError as error:
        if conversation[0]["role"] != "system":
            raise ModelError(f"the model's chat template fails ({error}); use another model") from error
    system, user, *rest = conversation
    merged = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
    return render_chat(tokenizer, [merged, *rest])


def token_budget(prompt_length: int, context: int | None, wanted: int) -> int:
    """Return the number of tokens an answer may have, in steps of 64 if the context is too small for all of them."""
    if context is None or prompt_length + wanted <= context:
        return wanted
    return max(0, (context - prompt_length) // _TOKEN_STEP * _TOKEN_STEP)
