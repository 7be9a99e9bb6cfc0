"""The web page of `openavs serve`: its options, and the request for a clip.

`app` is the only module that imports Gradio; `server` runs it behind a request filter. The modules below them need
neither: `inference` (recipes, models, one clip through the pipeline), `session` and `artifacts` (the files of a
session), `components` (HTML) and `controller` (the actions of the page and of the API).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openavs.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerConfig:
    """Options of the web server; the limits protect its disk and its queue.

    Attributes:
        pipeline: the recipe that is selected first, a name or a YAML file.
        overrides: `key=value` changes of that recipe.
        max_upload_mb: size limit of one upload (a megabyte is 2^20 bytes, as in browsers).
        max_total_mb: size limit of the files of all sessions together; None is ten of the largest uploads.
        max_seconds: duration limit of a clip.
        queue: requests that may wait.
        keep_minutes: idle time after which the files of a session are removed.
        reload_seconds: time after which those of a closed page are removed; a reloaded page finds them again.

    Raises:
        InputError: `max_total_mb` is smaller than one upload.
    """

    pipeline: str = "tiny"
    overrides: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    max_upload_mb: int = 200
    max_total_mb: int | None = None
    max_seconds: float = 60.0
    queue: int = 8
    keep_minutes: float = 60.0
    reload_seconds: float = 30.0
    device: str | None = None
    dtype: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if self.max_total < self.max_upload:
            raise InputError(
                f"--max-total-mb {self.max_total_mb} is smaller than one upload of {self.max_upload_mb} MB; raise it, "
                "or lower --max-upload-mb"
            )

    @property
    def max_upload(self) -> int:
        """Size limit of one upload in bytes."""
        return self.max_upload_mb << 20

    @property
    def max_total(self) -> int:
        """Size limit of the files of all sessions in bytes."""
        return 10 * self.max_upload if self.max_total_mb is None else self.max_total_mb << 20

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the page."""
        return self.host in LOOPBACK


VIDEOS = "0"  # folder of the videos of a session
STAGES = ("load", "caption", "translate", "localize")
TINY = "tiny"
"""Stays in memory beside another recipe: the example needs it, and it takes some 20 MB."""
MAX_WORDS = 50
MAX_WORD_LENGTH = 60


@dataclass(frozen=True)
class SegmentRequest:
    """A video, or an image with its audio, and how to segment it.

    Attributes:
        threshold: least score of a box; None is that of the recipe.
        add: phrases to search for in addition to the translator's.
        remove: phrases of the translator that are left out.
    """

    source: Path
    audio: Path | None = None
    recipe: str = TINY
    vocabulary: tuple[str, ...] = ()
    threshold: float | None = None
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    @property
    def clip(self) -> tuple[str, ...]:
        """Names of the files and of their folders, which Gradio names by their content."""
        return tuple(f"{path.parent.name}/{path.name}" for path in (self.source, self.audio) if path is not None)

    def overrides(self) -> list[str]:
        """Return the changes of the recipe as `key=value`."""
        words = {"vocabulary": self.vocabulary, "prompts.add": self.add, "prompts.remove": self.remove}
        changes = [f"{key}={json.dumps(list(value), ensure_ascii=False)}" for key, value in words.items() if value]
        return changes + ([] if self.threshold is None else [f"filtering.box_threshold={self.threshold}"])

    def with_prompts(self, wanted: Sequence[str], proposed: Sequence[str]) -> SegmentRequest:
        """Return the request that searches for the phrases `wanted`, where the translator proposed some."""
        add = tuple(phrase for phrase in wanted if phrase not in proposed)
        return replace(self, add=add, remove=tuple(phrase for phrase in proposed if phrase not in wanted))


def parse_vocabulary(text: str | None) -> tuple[str, ...]:
    """The distinct words of a list with commas; InputError if there are too many or one is too long."""
    words = tuple(dict.fromkeys(filter(None, (" ".join(word.split()) for word in re.split(r"[,;\n]", text or "")))))
    if len(words) > MAX_WORDS or any(len(word) > MAX_WORD_LENGTH for word in words):
        raise InputError(f"give at most {MAX_WORDS} words of at most {MAX_WORD_LENGTH} letters each, such as dog, bell")
    return words


def parse_threshold(value: object) -> float | None:
    """A score in [0, 1], rounded to the steps of a slider, or None; InputError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"a threshold is a number between 0 and 1, not {value!r:.40}")
    return round(float(value), 4)
