"""What a chat model is told: the captions of a request, cleaned and quoted, inside a prompt template.

Captions are data. They stand in the user turn only, without control characters or the brackets that chat templates
make their special tokens of, and limited in length and number: 50 kB of "instructions" stay 200 quoted characters.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from openavs.stages.translators.base import Request
from openavs.stages.translators.runs import CaptionRun, merge_runs, single_frames
from openavs.stages.translators.templates import Message, PromptTemplate, load_prompt
from openavs.structures.types import Caption

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
    return messages_about(template, runs_for(template, request), request.vocabulary, max_phrases)


def prompt_for(template: PromptTemplate, vocabulary: tuple[str, ...] | None) -> PromptTemplate:
    """The template itself, or its closed-vocabulary form where there is a vocabulary to close it with."""
    return load_prompt(template.closed) if vocabulary is not None and template.closed else template


def runs_for(template: PromptTemplate, request: Request) -> list[CaptionRun]:
    """What the template asks about: runs of frames with equal captions, or every frame on its own."""
    return (merge_runs if template.by_runs else single_frames)(request.frames)


def messages_about(
    template: PromptTemplate, runs: Sequence[CaptionRun], vocabulary: tuple[str, ...] | None, max_phrases: int
) -> list[Message]:
    """The turns that ask for the phrases of some runs."""
    frames = [run.captions for run in runs]
    values = {"max_phrases": str(max_phrases)}
    if template.by_runs:
        values |= {"runs": runs_to_json(runs), "count": str(len(runs))}
    else:
        values |= {
            "captions": captions_to_json(frames),
            "lines": captions_to_lines(frames),
            "frames": str(len(frames)),
        }
    if vocabulary is not None:
        values["vocabulary"] = json.dumps([clean_text(word) for word in vocabulary], ensure_ascii=False)
    return template.render(**{name: value for name, value in values.items() if name in template.variables})


def runs_to_json(runs: Sequence[CaptionRun]) -> str:
    """The `$runs` variable: a JSON list with one object per run and line, its seconds and its captions quoted."""
    return _rows_to_json(
        {"run": index, "seconds": f"{_time(run.captions[0].start)} to {_time(run.captions[0].end)}"}
        | {"heard": _quoted(_readable(run.captions))}
        for index, run in enumerate(runs)
    )


def captions_to_json(frames: Sequence[Sequence[Caption]]) -> str:
    """The `$captions` variable: a JSON list with one object per frame and line, its captions quoted."""
    return _rows_to_json(
        {"frame": index, "heard": _quoted(_readable(captions))} for index, captions in enumerate(frames)
    )


def captions_to_lines(frames: Sequence[Sequence[Caption]]) -> str:
    """The `$lines` variable: per frame `0: dog barking 0.81 | bell ringing 0.40`, or `0: -` for a silent one."""
    rows = [" | ".join(map(_plain, _readable(captions))) or "-" for captions in frames]
    return "\n".join(f"{index}: {row}" for index, row in enumerate(rows))


def clean_text(text: str) -> str:
    """One line of at most 200 characters, without control and format characters, brackets and double quotes."""
    head = text[: 4 * MAX_CHARACTERS].translate(_BRACKETS)
    seen = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in head)
    return " ".join(seen.split())[:MAX_CHARACTERS].rstrip()


def _rows_to_json(rows: Iterable[Mapping[str, object]]) -> str:
    return "[" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]"


def _time(seconds: float) -> str:
    return f"{round(seconds, 1):g}"


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
