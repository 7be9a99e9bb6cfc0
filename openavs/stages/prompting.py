"""Chat messages for a language model: prompt templates, and captions cleaned and quoted inside of them.

Captions are data. They appear only in the user turn, without control characters or the brackets that chat templates
build their special tokens from, and limited in length and number: 50 kB of "instructions" become 200 quoted characters.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from string import Template

from openavs.config import resources
from openavs.errors import InputError
from openavs.stages.translators.base import Request
from openavs.structures.types import Caption

MAX_CHARACTERS = 200  # per caption
MAX_CAPTIONS = 9  # per frame: three questions with three answers each
MAX_PHRASES = 4  # per frame or run of frames

Message = dict[str, str]  # {"role": ..., "content": ...}, the form that chat models expect
Conversation = list[Message]

_REQUIRED = ("name", "version", "variables", "summary")
_KEYS = (*_REQUIRED, "closed")
_SECTION = re.compile(r"^[^\S\n]*\[(system|user|picture)\][^\S\n]*$", re.MULTILINE)

# `<|im_end|>`, `</s>`, `[INST]`, `<｜User｜>` and the like are made of these; no sound description needs them. A double
# quote becomes a single one, so that to a model, too, nothing in a caption looks like the end of its quotation.
_BRACKETS = str.maketrans(dict.fromkeys("<>[]{}`\\|｜", " ") | {'"': "'"})


# ------------------------------------------------------------------------------------------------------------ templates


@dataclass(frozen=True)
class PromptTemplate:
    """One prompt file: a header, one section per turn and `$name` variables.

    `variables` are exactly the names that its text uses. `closed` names the prompt that replaces it when a request has
    a vocabulary; None if it has no such variant. `picture` follows the instructions if a contact sheet comes with the
    request.
    """

    name: str
    version: str
    summary: str
    variables: tuple[str, ...]
    system: str
    user: str
    closed: str | None = None
    picture: str = ""

    @property
    def by_runs(self) -> bool:
        """True if the prompt lists runs of frames with equal captions, False if it lists every frame."""
        return "runs" in self.variables

    def render(self, with_picture: bool = False, /, **values: str) -> Conversation:
        """Return the system turn (if the prompt has one) and the user turn.

        Values are inserted as they are: a `$` inside a value is never expanded.

        Args:
            with_picture: adds the section about the contact sheet to the instructions.
            values: one for each variable.

        Raises:
            InputError: a variable is missing or unknown to the prompt.
        """
        missing, unknown = set(self.variables) - set(values), set(values) - set(self.variables)
        if missing:
            raise InputError(f"prompt '{self.name}' needs a value for {_names(missing)}, and none was given")
        if unknown:
            raise InputError(f"prompt '{self.name}' has no variable {_names(unknown)}; it has {_names(self.variables)}")
        system = "\n\n".join(filter(None, (self.system, self.picture if with_picture else "")))
        turns = [("system", system), ("user", self.user)]
        return [{"role": role, "content": Template(text).substitute(values)} for role, text in turns if text]


def load_prompt(name_or_path: str | Path) -> PromptTemplate:
    """Load a prompt by its name (`default`) or by the path of a file (`./mine.txt`).

    Raises:
        InputError: the prompt does not exist, cannot be read or breaks the format.
    """
    path = resources.find("prompts", name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the prompt {path}: {reason}") from error
    return parse_prompt(text, str(name_or_path))


def parse_prompt(text: str, where: str) -> PromptTemplate:
    """Parse the text of a prompt file; `where` names it in error messages."""
    head, separator, body = text.replace("\r\n", "\n").partition("\n---\n")
    if not separator:
        raise InputError(f"prompt '{where}' has no header: put `key: value` lines and a line `---` above the sections")
    header, sections = _parse_header(head, where), _parse_sections(body, where)
    if not sections.get("user"):
        raise InputError(f"prompt '{where}' has no [user] section with text in it")
    variables = tuple(header["variables"].replace(",", " ").split())
    _check_variables(variables, sections, where)
    return PromptTemplate(
        name=header["name"],
        version=header["version"],
        summary=header["summary"],
        variables=variables,
        system=sections.get("system", ""),
        picture=sections.get("picture", ""),
        user=sections["user"],
        closed=header.get("closed") or None,
    )


def _parse_header(head: str, where: str) -> dict[str, str]:
    header: dict[str, str] = {}
    for line in filter(None, map(str.strip, head.split("\n"))):
        key, colon, value = line.partition(":")
        if not colon or key.strip() not in _KEYS:
            raise InputError(
                f"prompt '{where}' has the header line '{line[:80]}'; write `key: value` with {_names(_KEYS)}"
            )
        header[key.strip()] = value.strip()
    if missing := [key for key in _REQUIRED if key not in header]:
        raise InputError(f"prompt '{where}' lacks {_names(missing)} in its header")
    return header


def _parse_sections(body: str, where: str) -> dict[str, str]:
    before, *parts = _SECTION.split(body)  # the text before the first section, then names and texts alternate
    if before.strip():
        raise InputError(f"prompt '{where}' has text before its first section; start with [system] or [user]")
    names = parts[::2]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"prompt '{where}' has two [{name}] sections; keep one")
    return dict(zip(names, map(str.strip, parts[1::2]), strict=True))


def _check_variables(declared: tuple[str, ...], sections: dict[str, str], where: str) -> None:
    used: set[str] = set()
    for template in map(Template, sections.values()):
        if not template.is_valid():
            raise InputError(f"prompt '{where}' has a `$` that starts no variable; write `$$` for a dollar sign")
        used.update(template.get_identifiers())
    if used != set(declared):
        raise InputError(
            f"prompt '{where}' declares the variables {_names(declared)} but uses {_names(used)}; make them agree"
        )


def _names(words: Iterable[str]) -> str:
    return ", ".join(f"'{word[:40]}'" for word in sorted(words)[:20]) or "none"


# ----------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class CaptionRun:
    """Consecutive frames with equal captions: `start` up to, but not including, `stop`, and one set of captions."""

    start: int
    stop: int
    captions: tuple[Caption, ...]


def merge_runs(frames: Sequence[tuple[Caption, ...]]) -> list[CaptionRun]:
    """Return the runs of a clip in temporal order; frames without captions are in no run.

    Captions are equal if their texts and questions are, in the same order. A run has the mean of their scores.
    """
    runs, start = [], 0
    for key, group in groupby(frames, key=lambda captions: [(caption.text, caption.question) for caption in captions]):
        equal = list(group)
        if key:
            runs.append(CaptionRun(start, start + len(equal), tuple(map(_merged, zip(*equal, strict=True)))))
        start += len(equal)
    return runs


def single_frames(frames: Sequence[tuple[Caption, ...]]) -> list[CaptionRun]:
    """Return one run for every frame, those without captions included."""
    return [CaptionRun(i, i + 1, captions) for i, captions in enumerate(frames)]


def _merged(equal: Sequence[Caption]) -> Caption:
    """One caption for those of the same text, from the start of the first to the end of the last."""
    scores = [caption.score for caption in equal if caption.score is not None]
    return replace(equal[0], score=sum(scores) / len(scores) if scores else None, end=equal[-1].end)


# ------------------------------------------------------------------------------------------------------------- messages


def build_messages(prompt: PromptTemplate | str, request: Request, *, max_phrases: int = MAX_PHRASES) -> Conversation:
    """Return the messages for one whole request; deterministic.

    Args:
        prompt: a template or a prompt's name. If the request has a vocabulary, the prompt's `closed` variant is used.
        request: the captions of a clip.
        max_phrases: phrases to request per frame or run.

    Raises:
        InputError: the prompt needs a variable that the request cannot fill.
    """
    template = select_template(load_prompt(prompt) if isinstance(prompt, str) else prompt, request.vocabulary)
    return render_messages(template, split_frames(template, request), request.vocabulary, max_phrases)


def select_template(template: PromptTemplate, vocabulary: tuple[str, ...] | None) -> PromptTemplate:
    """Return the template, or its closed-vocabulary variant if there are a vocabulary and a variant."""
    return load_prompt(template.closed) if vocabulary is not None and template.closed else template


def split_frames(template: PromptTemplate, request: Request) -> list[CaptionRun]:
    """Return the units that the template lists: runs of frames with equal captions, or single frames."""
    return (merge_runs if template.by_runs else single_frames)(request.frames)


def render_messages(
    template: PromptTemplate,
    runs: Sequence[CaptionRun],
    vocabulary: tuple[str, ...] | None,
    max_phrases: int,
    with_picture: bool = False,
) -> Conversation:
    """Return the messages that request the phrases of some runs, with or without a contact sheet."""
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
    return template.render(
        with_picture, **{name: value for name, value in values.items() if name in template.variables}
    )


# The keys `heard`, `asked` and `sure` are part of the prompts and explained in the templates; they must not change.


def runs_to_json(runs: Sequence[CaptionRun]) -> str:
    """Return the `$runs` variable: a JSON list, one line per run with its seconds and quoted captions."""
    return _rows_to_json(
        {"run": index, "seconds": f"{_seconds(run.captions[0].start)} to {_seconds(run.captions[0].end)}"}
        | {"heard": _caption_rows(_readable(run.captions))}
        for index, run in enumerate(runs)
    )


def captions_to_json(frames: Sequence[Sequence[Caption]]) -> str:
    """Return the `$captions` variable: a JSON list, one line per frame with its quoted captions."""
    return _rows_to_json(
        {"frame": index, "heard": _caption_rows(_readable(captions))} for index, captions in enumerate(frames)
    )


def captions_to_lines(frames: Sequence[Sequence[Caption]]) -> str:
    """Return the `$lines` variable: per frame `0: dog barking 0.81 | bell ringing 0.40`, `0: -` for a silent one."""
    rows = [" | ".join(map(_caption_words, _readable(captions))) or "-" for captions in frames]
    return "\n".join(f"{index}: {row}" for index, row in enumerate(rows))


def clean_text(text: str) -> str:
    """Return one line of at most 200 characters without control characters, brackets and double quotes."""
    head = text[: 4 * MAX_CHARACTERS].translate(_BRACKETS)
    printable = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in head)
    return " ".join(printable.split())[:MAX_CHARACTERS].rstrip()


def _rows_to_json(rows: Iterable[Mapping[str, object]]) -> str:
    return "[" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]"


def _seconds(time: float) -> str:
    return f"{round(time, 1):g}"


def _readable(captions: Sequence[Caption]) -> list[Caption]:
    return [caption for caption in captions if clean_text(caption.text)][:MAX_CAPTIONS]


def _caption_rows(captions: Sequence[Caption]) -> list[dict[str, str | float]]:
    several = len({caption.question for caption in captions}) > 1  # a single question would carry no information
    rows: list[dict[str, str | float]] = []
    for caption in captions:
        row: dict[str, str | float] = {"text": clean_text(caption.text)}
        if several and caption.question:
            row["asked"] = clean_text(caption.question)
        if caption.score is not None:
            row["sure"] = round(caption.score, 2)
        rows.append(row)
    return rows


def _caption_words(caption: Caption) -> str:
    words = " ".join(re.sub(r"[^\w' -]", " ", clean_text(caption.text).lower()).split())
    return words if caption.score is None else f"{words} {caption.score:.2f}"
