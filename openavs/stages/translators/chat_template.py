"""Conversations as the tokens that a local chat model reads, and how many are left for its answer.

Library traps that are handled here: some tokenizers have no pad token; some chat templates refuse a system turn;
thinking models think unless told not to.
"""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError

from openavs.errors import ModelError
from openavs.stages.translators.chat import Conversation

_ROOM = 64


def chat_tokenizer(tokenizer: Any, ref: str) -> Any:
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


def to_tokens(tokenizer: Any, conversation: Conversation) -> list[int]:
    """The tokens of a conversation up to where the answer begins."""
    # The template has written the special tokens already.
    return list(tokenizer(render(tokenizer, conversation), add_special_tokens=False)["input_ids"])


def render(tokenizer: Any, conversation: Conversation) -> str:
    """The conversation in the model's own notation; the system turn joins the user's where the model takes none."""
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return str(tokenizer.apply_chat_template(conversation, **options))
    except TemplateError as error:
        if conversation[0]["role"] != "system":
            raise ModelError(f"the model's chat template fails ({error}); use another model") from error
    system, user, *rest = conversation
    merged = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
    return render(tokenizer, [merged, *rest])


def token_budget(length: int, context: int | None, wanted: int) -> int:
    """Tokens that an answer may have after a question of this length, in steps of 64 where the context is small."""
    if context is None or length + wanted <= context:
        return wanted
    return max(0, (context - length) // _ROOM * _ROOM)
