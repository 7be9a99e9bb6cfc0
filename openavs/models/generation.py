"""Greedy generation with chat models of transformers: tokenizers, token budgets and batches.

Adaptations to the library: decoder-only models need padding on the left; a checkpoint's own sampling settings
(temperature, repetition penalty) would make answers random or damage the repetition in JSON; some tokenizers have no
pad token; some chat templates refuse a system turn; thinking has to be turned off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from openavs.errors import ModelError

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "repetition_penalty": 1.0,
}
"""Arguments of `generate` that override a checkpoint's own settings."""

_TOKEN_STEP = 64


def pad_left(tokenizer: Any) -> Any:
    """Configure a tokenizer for generation: padding on the left, with a pad token."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        # Padding is masked, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def check_chat_template(template: Any, ref: str) -> None:
    """Raise ModelError for a model without a chat template."""
    if not template:
        raise ModelError(
            f"the model '{ref}' has no chat template, so it cannot answer requests; use an instruction-tuned checkpoint"
        )


def render_chat(renderer: Any, conversation: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation in the model's format; a system turn that the template refuses joins the user's turn.

    Args:
        renderer: the tokenizer or the processor.
        conversation: turns with the contents that the renderer takes: texts, or lists of parts.

    Raises:
        ModelError: the chat template fails.
    """
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return str(renderer.apply_chat_template(list(conversation), **options))
    except TemplateError as error:
        if conversation[0]["role"] != "system":
            raise ModelError(f"the model's chat template fails ({error}); use another model") from error
    (system, user), rest = (turn["content"] for turn in conversation[:2]), conversation[2:]
    merged = f"{system}\n\n{user}" if isinstance(system, str) else [*system, *user]
    return render_chat(renderer, [{"role": "user", "content": merged}, *rest])


def context_length(model: Any) -> int | None:
    """Return the maximum number of tokens of a prompt with its answer; None if the configuration has no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def token_budget(prompt_length: int, context: int | None, wanted: int) -> int:
    """Return the number of tokens an answer may have, in steps of 64 if the context is too small for all of them."""
    if context is None or prompt_length + wanted <= context:
        return wanted
    return max(0, (context - prompt_length) // _TOKEN_STEP * _TOKEN_STEP)


def token_batches(
    lengths: Sequence[int], limits: Sequence[int], context: int | None, size: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield the maximum number of new tokens and the positions of a batch; prompts without room are left out.

    Only prompts with the same maximum share a batch, so that none is truncated because of another.

    Args:
        lengths: tokens of each prompt.
        limits: maximum tokens of each answer.
        context: tokens of the longest prompt with its answer; None for no limit.
        size: maximum prompts of a batch.
    """
    groups: dict[int, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):  # similar lengths: little padding
        groups.setdefault(token_budget(lengths[i], context, limits[i]), []).append(i)
    groups.pop(0, None)
    for budget, positions in groups.items():
        for start in range(0, len(positions), size):
            yield budget, positions[start : start + size]
