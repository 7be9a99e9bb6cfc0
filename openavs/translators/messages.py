"""What a chat model is told: the captions of a request, cleaned and quoted, inside a prompt template.

Captions are data. They stand in the user turn only, without control characters or the brackets that chat templates
make their special tokens of, and limited in length and number: 50 kB of "instructions" stay 200 quoted characters.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence

from openavs.prompts import Message, PromptTemplate, load_prompt
from openavs.translators.base import Request
from openavs.types import Caption

MAX_CHARACTERS = 200  # of one caption
MAX_CAPTIONS = 9  # of one frame: three questions of three answers each
MAX_PHRASES = 4

# `<|im_end|>`, `</s>`, `[INST]`, `<｜User｜>` and their like are made of these; no sound needs them. A double quote
# becomes a single one, so that to a model, too, nothing in a caption looks like the end of its quotation.
_BRACKETS = str.maketrans(dict.fromkeys("<>[]{}`\\|｜", " ") | {'"': "'"})


def build_messages(prompt: PromptTemplate | str, request: Request, *, max_phrases: int = MAX_PHRASES) -> list[Message]:
    """The turns that ask for one request's phrases; deterministic.

    `prompt` is a template or a prompt's name. Where the request has a vocabulary and the prompt names a `closed`
    prompt, that one is used. Raises InputError when the prompt needs a variable that the request cannot fill.
    """
    template = prompt_for(load_prompt(prompt) if isinstance(prompt, str) else prompt, request.vocabulary)
    values = {
        "captions": captions_to_json(request.frames),
        "lines": captions_to_lines(request.frames),
        "frames": str(len(request.frames)),
        "max_phrases": str(max_phrases),
    }
    if request.vocabulary is not None:
        values["vocabulary"] = json.dumps([clean_text(word) for word in request.vocabulary], ensure_ascii=False)
    return template.render(**{name: value for name, value in values.items() if name in template.variables})


def prompt_for(template: PromptTemplate, vocabulary: tuple[str, ...] | None) -> PromptTemplate:
    """The template itself, or its closed-vocabulary form where there is a vocabulary to close it with."""
    return load_prompt(template.closed) if vocabulary is not None and template.closed else template


def captions_to_json(frames: Sequence[Sequence[Caption]]) -> str:
    """The `$captions` variable: a JSON list with one object per frame and line, its captions quoted."""
    rows = [
        json.dumps({"frame": index, "heard": _quoted(_readable(captions))}, ensure_ascii=False)
        for index, captions in enumerate(frames)
    ]
    return "[" + ",\n".join(rows) + "]"


def captions_to_lines(frames: Sequence[Sequence[Caption]]) -> str:
    """The `$lines` variable: per frame `0: dog barking 0.81 | bell ringing 0.40`, or `0: -` for a silent one."""
    rows = [" | ".join(map(_plain, _readable(captions))) or "-" for captions in frames]
    return "\n".join(f"{index}: {row}" for index, row in enumerate(rows))


def clean_text(text: str) -> str:
    """One line of at most 200 characters, without control and format characters, brackets and double quotes."""
    head = text[: 4 * MAX_CHARACTERS].translate(_BRACKETS)
    seen = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in head)
    return " ".join(seen.split())[:MAX_CHARACTERS].rstrip()


def _readable(captions: Sequence[Caption]) -> list[Caption]:
    return [caption for caption in captions if clean_text(caption.text)][:MAX_CAPTIONS]


def _quoted(captions: Sequence[Caption]) -> list[dict[str, str | float]]:
    several = len({caption.question for caption in captions}) > 1  # one question for all would say nothing
    rows: list[dict[str, str | float]] = []
    for caption in captions:
        row: dict[str, str | float] = {"text": clean_text(caption.text)}
        if several and caption.question:
            row["asked"] = clean_text(caption.question)
        if caption.score is not None:
            row["sure"] = round(caption.score, 2)
        rows.append(row)
    return rows


def _plain(caption: Caption) -> str:
    words = " ".join(re.sub(r"[^\w' -]", " ", clean_text(caption.text).lower()).split())
    return words if caption.score is None else f"{words} {caption.score:.2f}"
