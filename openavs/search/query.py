"""Queries of a sound index. Needs neither numpy nor torch, except for text similarity, so that it starts fast."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openavs.errors import InputError
from openavs.stages.lexicon import members, narrower, noun_terms
from openavs.utils.text import did_you_mean, split_list

if TYPE_CHECKING:
    from openavs.search.encoder import TextEncoder

APPLICATION_ID = 0x4F415653  # "OAVS", in the header of the file
VERSION = 1
"""Of the tables. An index of another version is made again; it holds nothing that the results do not."""

LEXICON_WEIGHT = 0.9
"""Factor of the scores of spans that match through the lexicon only: "puppy" or "Bark" for the query "dog"."""

_STOP_WORDS = frozenset(split_list("a,an,and,are,as,at,by,for,from,in,is,it,its,of,on,some,the,to,while,with"))
_SUGGESTIONS = 2000  # texts that a misspelled query is compared with


@dataclass(frozen=True)
class Hit:
    """A span of a clip that matches a query: overlapping matches of the clip, merged.

    Attributes:
        clip: the clip's id.
        start: in seconds from the start of the clip.
        end: in seconds.
        phrase: the best match.
        score: its score times the weight of the match, in [0, 1].
        run: the result folder.
        seen: whether a segmented thing is among the matches; the following fields are of the best one, or else of the
            best match.
        label: its class; None in open vocabulary.
        track: its track; None without a tracker.
        frame: index of the frame in which it scores best.
        time: time of that frame in seconds.
        box: its box in that frame, in pixels; None for a sound that is not seen.
        duration: length of the clip in seconds, as far as the result covers it.
    """

    clip: str
    start: float
    end: float
    phrase: str
    score: float
    run: Path
    seen: bool
    label: str | None
    track: int | None
    frame: int
    time: float
    box: tuple[float, float, float, float] | None
    duration: float

    @property
    def folder(self) -> Path:
        """The clip's folder."""
        return self.run / "clips" / self.clip

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        report = self.folder / "report.html"
        return {
            **{name: getattr(self, name) for name in ("clip", "start", "end", "phrase")},
            "score": round(self.score, 6),
            "run": str(self.run),
            **{name: getattr(self, name) for name in ("seen", "label", "track", "frame", "time")},
            "box": None if self.box is None else list(self.box),
            "report": str(report) if report.is_file() else None,
        }


@dataclass(frozen=True)
class SearchResult:
    """The best hits of a query, and the number of all hits."""

    hits: tuple[Hit, ...]
    total: int


@dataclass(slots=True)
class _Match:
    """Overlapping matches of one clip: `best` is the best span, `thing` the best segmented one with its score."""

    clip: int
    start: float
    end: float
    score: float
    best: int
    thing: tuple[float, int] | None


class SoundIndex(AbstractContextManager["SoundIndex"]):
    """An index that `openavs index` wrote, opened for reading. A newer file in its place is not noticed.

    Raises:
        InputError: no such file, another kind of file, or another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        check_index(self.path)
        # The file is replaced as a whole and never changed, so it needs no locks.
        self._db = sqlite3.connect(f"{self.path.as_uri()}?mode=ro&immutable=1", uri=True)
        self._db.execute("PRAGMA temp_store = MEMORY")

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def count(self, table: str) -> int:
        """Return the number of `clips`, `spans`, `texts` or `runs`."""
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    @cached_property
    def runs(self) -> dict[int, Path]:
        """The result folders by their ids."""
        rows = self._db.execute("SELECT id, folder FROM runs ORDER BY id")
        return {number: Path(os.fsdecode(folder)) for number, folder in rows}

    def find(
        self,
        query: str,
        *,
        both: Sequence[str] = (),
        without: Sequence[str] = (),
        seen: bool = False,
        runs: Sequence[str] = (),
        within: float = 0.0,
        similar: float | None = None,
        limit: int | None = None,
    ) -> SearchResult:
        """Return the spans that match a query, best first.

        A text matches if it has all words of the query, in any form, or a name of the same thing in the lexicon.

        Args:
            query: words such as "dog barking".
            both: queries that each have a match in the same clip at an overlapping time.
            without: queries that have none.
            seen: only segmented things match `query`.
            runs: names or paths of result folders; none: all.
            within: seconds that may be between the spans of `query` and those of `both` and `without`; infinity: any
                time of the clip.
            similar: also texts whose embedding has at least this cosine similarity to the query's; the index needs
                embeddings.
            limit: maximum number of hits; None: all.

        Raises:
            InputError: a query without words, an unknown run, or no embeddings.
        """
        if not within >= 0.0:
            raise InputError(f"within is a number of seconds from 0 on, not {within}")
        if similar is not None and not -1.0 <= similar <= 1.0:
            raise InputError(f"a cosine similarity is in [-1, 1], not {similar}")
        with sqlite_errors(self.path):
            numbers = self._run_numbers(runs)
            found = self._find(query, both, without, seen, numbers, within, similar)
            return SearchResult(tuple(map(self._hit, found[:limit])), len(found))

    def suggestion(self, query: str) -> str:
        """Return the end of a message about a query that nothing matches: texts that share a word, or a similar one."""
        with sqlite_errors(self.path):
            some = fts_queries(query)[1].replace(" AND ", " OR ")
            search = "SELECT text FROM words WHERE words MATCH ? ORDER BY rank LIMIT 5"
            shown = [text for (text,) in self._db.execute(search, (some,))]
            texts = [text for (text,) in self._db.execute(f"SELECT text FROM texts LIMIT {_SUGGESTIONS}")]
        shown = shown or texts[:5]
        known = f"the index has {', '.join(map(repr, shown))}" if shown else "the index is empty"
        return known if shown != texts[:5] else did_you_mean(query, texts, known)

    # --------------------------------------------------------------------------------------------------- matching

    def _find(
        self,
        query: str,
        both: Sequence[str],
        without: Sequence[str],
        seen: bool,
        numbers: Sequence[int],
        within: float,
        similar: float | None,
    ) -> list[_Match]:
        """The matches of `query` that fulfill the conditions, best first."""
        columns = "clip, start, end, score * weight, seen, span"
        found = list(_merged(self._rows(columns, query, numbers, seen, similar, "ORDER BY clip, start")))
        for other, wanted in [*((text, True) for text in both), *((text, False) for text in without)]:
            times: dict[int, list[tuple[float, float]]] = {match.clip: [] for match in found}
            for clip, start, end in self._rows("clip, start, end", other, numbers, False, similar):
                if clip in times:
                    times[clip].append((start - within, end + within))
            found = [match for match in found if _overlaps(match, times[match.clip]) is wanted]
        found.sort(key=lambda match: (-match.score, match.clip, match.start))
        return found

    def _rows(
        self, columns: str, query: str, runs: Sequence[int], seen: bool, similar: float | None, order: str = ""
    ) -> Iterator[Any]:
        """Columns of the spans that match a query; a span comes once for each of its texts that match."""
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS matched (text INTEGER PRIMARY KEY, weight REAL)")
        self._db.execute("DELETE FROM matched")
        self._db.executemany("INSERT INTO matched VALUES (?, ?)", self._texts(query, similar).items())
        conditions = ["seen"] * seen
        if runs:
            conditions.append(f"clip IN (SELECT id FROM clips WHERE run IN ({', '.join('?' * len(runs))}))")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        names = "matched CROSS JOIN names USING (text)"  # in this order: few texts, each with its spans in one place
        return self._db.execute(f"SELECT {columns} FROM {names} {where} {order}", runs)

    def _texts(self, query: str, similar: float | None) -> dict[int, float]:
        """The texts that match a query, with weights."""
        words, expanded = fts_queries(query)
        search = "SELECT rowid FROM words WHERE words MATCH ?"
        weights: dict[int, float] = {}
        if similar is not None:
            weights = self._encoder.similar(self._db, query, similar)
        for text, weight in ((expanded, LEXICON_WEIGHT), (words, 1.0)):
            for (number,) in self._db.execute(search, (text,)):
                weights[number] = max(weight, weights.get(number, 0.0))
        return weights

    @cached_property
    def _encoder(self) -> TextEncoder:
        from openavs.search.encoder import stored_encoder

        encoder = stored_encoder(self._db)
        if encoder is None:
            raise InputError(
                f"{self.path} has no text embeddings; add them with: openavs index --out {self.path} --encoder RECIPE"
            )
        return encoder

    def _run_numbers(self, names: Sequence[str]) -> list[int]:
        chosen = []
        for name in names:
            place = Path(os.path.abspath(name))
            own = [number for number, folder in self.runs.items() if folder == place or folder.name == name]
            if not own:
                raise InputError(
                    f"{self.path} has no run {name!r}; {did_you_mean(name, {run.name for run in self.runs.values()})}"
                )
            chosen += own
        return chosen

    def _hit(self, match: _Match) -> Hit:
        shown = match.best if match.thing is None else match.thing[1]
        columns = "clips.clip, run, duration, label, track, frame, time, x0, y0, x1, y1"
        row = self._db.execute(
            f"SELECT {columns} FROM spans JOIN clips ON clips.id = spans.clip WHERE spans.id = ?", (shown,)
        ).fetchone()
        clip, run, duration, label, track, frame, time, *box = row
        (phrase,) = self._db.execute("SELECT phrase FROM spans WHERE id = ?", (match.best,)).fetchone()
        return Hit(
            clip=clip,
            start=match.start,
            end=match.end,
            phrase=phrase,
            score=match.score,
            run=self.runs[run],
            seen=match.thing is not None,
            label=label,
            track=track,
            frame=frame,
            time=time,
            box=None if box[0] is None else (box[0], box[1], box[2], box[3]),
            duration=duration,
        )


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Raise InputError for an error of SQLite: a damaged file, a full disk."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{path} cannot be read or written ({error}); free disk space, or remove it and run 'openavs index' again "
            "with all result folders"
        ) from error


def check_index(path: Path) -> None:
    """Check that a file is an index of this version.

    Raises:
        InputError: it does not exist, or is something else.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; make it with: openavs index RESULTS --out {path}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; give the file of 'openavs index --out'") from error
    # Of the format of SQLite files: user version at byte 60, application id at byte 68.
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if not header.startswith(b"SQLite format 3\0") or application != APPLICATION_ID:
        raise InputError(f"{path} is not an index of openavs; give the file of 'openavs index --out'")
    if version != VERSION:
        raise InputError(
            f"{path} was written by another version of openavs (tables {version}, not {VERSION}); remove it and run "
            "'openavs index' again with all result folders"
        )


def fts_queries(query: str) -> tuple[str, str]:
    """Return a query in the syntax of FTS5, by its words alone and expanded by the lexicon.

    Articles and prepositions are left out. A noun also stands for the things that it names (puppy: dog) and for their
    kinds (animal: dog, cat, ...), which are in the column `things`.

    Raises:
        InputError: the query has no words.
    """
    terms = noun_terms(query)
    terms = [term for term in terms if term[0] not in _STOP_WORDS] or terms
    if not terms:
        raise InputError(f"the query {query!r:.60} has no words; write what sounds, such as 'dog barking'")
    plain = [_quoted(word) for text, _ in terms for word in text.split()]
    expanded = []
    for text, things in terms:
        kinds = dict.fromkeys(kind for thing in (text, *things) for kind in _kinds(thing))
        own = " AND ".join(map(_quoted, text.split()))
        named = [f"things : {_quoted(thing)}" for thing in dict.fromkeys((*things, *kinds))]
        expanded.append(f"({' OR '.join([f'({own})', *named])})")
    return f"text : ({' AND '.join(plain)})", " AND ".join(expanded)


def _kinds(thing: str) -> Iterator[str]:
    """The members of a category and the narrower terms of a thing, step by step."""
    seen, queue = {thing}, [thing]
    while queue:
        for kind in sorted({*members(queue[0]), *narrower(queue.pop(0))} - seen):
            seen.add(kind)
            queue.append(kind)
            yield kind


def _quoted(words: str) -> str:
    return f'"{words}"'  # words of `normalize_phrase` have no quotes


def _merged(rows: Iterable[tuple[int, float, float, float, int, int]]) -> Iterator[_Match]:
    """Merge the overlapping rows of each clip; rows are clip, start, end, score, seen, span, by clip and start."""
    for clip, own in groupby(rows, key=itemgetter(0)):
        current: _Match | None = None
        for _, start, end, score, seen, span in own:
            if current is None or start > current.end:
                if current is not None:
                    yield current
                current = _Match(clip, start, end, score, span, (score, span) if seen else None)
                continue
            current.end = max(current.end, end)
            if score > current.score:
                current.score, current.best = score, span
            if seen and (current.thing is None or score > current.thing[0]):
                current.thing = score, span
        if current is not None:
            yield current


def _overlaps(match: _Match, times: Iterable[tuple[float, float]]) -> bool:
    return any(start < match.end and match.start < end for start, end in times)
