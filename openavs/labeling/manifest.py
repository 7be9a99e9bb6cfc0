"""The plan of a job: which clips, in which shards, with which recipe. Made once; everything else follows from it.

`OUT/plan.jsonl` has one line a clip, sorted by id, shard after shard. `OUT/plan.json`, written last, says what they are
to be labelled with and where in it each shard lies, so that nobody has to read more of it than a shard. It also holds
the SHA-256 of `plan.jsonl`, which is compared when a job is opened. Neither says where on this machine anything is.
`OUT/plan.sizes` has the size of each clip's file in bytes, a line each: a clip whose file was damaged or missing may
get another one without becoming another job.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openavs
from openavs.errors import InputError
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.sample import Sample, line_to_sample, sample_to_line
from openavs.results.run_folder import describe_differences, differing_keys
from openavs.results.serialization import encode, json_bytes
from openavs.utils.durable import write_whole
from openavs.utils.fs import atomic_write, read_regular
from openavs.utils.strict_json import parse_json
from openavs.utils.text import pluralize

log = logging.getLogger(__name__)

FORMAT = 2
SHARD_SIZE = 256
LINES, SIZES = "plan.jsonl", "plan.sizes"


@dataclass(frozen=True)
class JobRequest:
    """What a plan is to be made of; where a number is None, an existing plan's is taken, or else the default.

    `classes` are those of the labels in the order of their indices, none for binary labels.
    """

    kind: str
    items: Sequence[Sample]
    recipe: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    shard_size: int | None = None
    threads: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Manifest:
    """A plan as it is on disk."""

    data: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Stands for all that the outputs depend on: source, recipe, layout, version."""
        return str(self.data["key"])

    @property
    def clips(self) -> int:
        """How many there are."""
        return int(self.data["source"]["clips"])

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self.data["shards"])

    def clips_of(self, shard: int) -> int:
        """How many clips a shard has."""
        return int(self.data["shards"][shard][2])

    def specs(self, job: Job, numbers: Sequence[int]) -> Iterator[ShardSpec]:
        """What a worker needs to know of some shards."""
        for number in numbers:
            offset, size, _ = self.data["shards"][number]
            yield ShardSpec(job, number, offset, size)


def read_manifest(out: Path) -> Manifest | None:
    """The plan of a result folder; None if it has none. InputError if it is not one of this openavs."""
    path = out / "plan.json"
    try:
        data = parse_json(read_regular(path))
    except FileNotFoundError:
        return None
    except ValueError as problem:
        raise InputError(f"{path} is damaged ({problem}); give another --out or start anew with --overwrite") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} was not written by this openavs; give another --out or start anew with --overwrite")
    if not _is_whole(data):
        raise InputError(f"{path} is damaged; give another --out or start anew with --overwrite")
    return Manifest(data)


def _is_whole(data: Mapping[str, Any]) -> bool:
    """Whether a plan has what a job asks of it."""
    source, shards = data.get("source"), data.get("shards")
    if not isinstance(source, dict) or not isinstance(source.get("clips"), int) or not isinstance(shards, list):
        return False
    places = all(isinstance(s, list) and len(s) == 3 and all(isinstance(n, int) and n >= 0 for n in s) for s in shards)
    return places and source["clips"] >= 0 and isinstance(data.get("key"), str)


def make_manifest(out: Path, wish: JobRequest) -> Manifest:
    """Writes the plan of a new job."""
    size = wish.shard_size or SHARD_SIZE
    items = _chosen(wish)
    content = b"".join(map(sample_to_line, items))
    data = _data(_identity(wish, content, len(items), size, wish.threads or 1), content)
    write_whole(out / LINES, content, durable=True)
    write_whole(out / SIZES, _sizes(items), durable=True)
    write_whole(out / "plan.json", json_bytes(data), durable=True)
    return Manifest(data)


def _data(identity: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    """What `plan.json` holds: the identity, its key, and the offset, length and number of lines of each shard."""
    lines, size = content.splitlines(keepends=True), identity["shard_size"]
    shards, offset = [], 0
    for start in range(0, len(lines), size):
        own = lines[start : start + size]
        length = sum(map(len, own))
        shards.append([offset, length, len(own)])
        offset += length
    return {**identity, "key": _key(identity), "shards": shards}


def check_manifest(out: Path, plan: Manifest, wish: JobRequest) -> Manifest:
    """Compares a plan with what it would be made of now, and with its own hash.

    Returns the plan. If `plan.jsonl` or the places in `plan.json` were damaged since, they are written again.

    Raises:
        InputError: the plan was made of something else, which is named.
    """
    content = b"".join(map(sample_to_line, _chosen(wish)))
    size, threads = wish.shard_size or plan.data["shard_size"], wish.threads or plan.data["threads"]
    identity = _identity(wish, content, content.count(b"\n"), size, threads)
    saved = {key: plan.data.get(key) for key in identity}
    found = differing_keys(saved, identity)
    keys = {key: how for key, how in found.items() if not key.startswith("source.")}
    if len(keys) < len(found):
        keys = {"its source": f" ({_source_difference(out, plan, wish, content)})", **keys}
    if keys:
        raise InputError(
            f"{out} holds another job, which differs in {describe_differences(keys)}; give another --out, "
            "or use --overwrite"
        )
    data = _data(identity, content)
    if _content(out / LINES) != content:
        _write_again(out / LINES, content)
    if plan.data != data:
        _write_again(out / "plan.json", json_bytes(data))
    return Manifest(data)


def _write_again(path: Path, content: bytes) -> None:
    log.warning("%s was lost or changed; it is written again", path)
    atomic_write(path, content)


def replaced_files(out: Path, wish: JobRequest) -> list[str]:
    """The clips, of a plan that was made of the same, whose files have another size than they had then."""
    items = _chosen(wish)
    try:
        was = read_regular(out / SIZES).splitlines()
    except (FileNotFoundError, ValueError):
        was = []
    if len(was) != len(items):
        raise InputError(f"{out / SIZES} is damaged; give another --out or start anew with --overwrite")
    now = _sizes(items).splitlines()
    return [item.id for item, before, after in zip(items, was, now, strict=True) if before != after]


def update_sizes(out: Path, wish: JobRequest) -> None:
    """Makes the files as they are those of the plan."""
    write_whole(out / SIZES, _sizes(_chosen(wish)), durable=True)


def _sizes(items: Sequence[Sample]) -> bytes:
    """A line for each; an empty one for a file that is not there."""
    return "".join("\n" if item.bytes is None else f"{item.bytes}\n" for item in items).encode("ascii")


def _chosen(wish: JobRequest) -> Sequence[Sample]:
    return wish.items[: wish.limit]


def _identity(wish: JobRequest, content: bytes, clips: int, shard_size: int, threads: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "openavs": openavs.__version__,
        "source": {"kind": wish.kind, "clips": clips, "sha256": hashlib.sha256(content).hexdigest()},
        "limit": wish.limit,
        "labels": {"values": "class" if wish.classes else "binary", "classes": list(wish.classes)},
        "recipe": encode(dict(wish.recipe), "recipe"),
        "shard_size": shard_size,
        "threads": threads,
    }


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _source_difference(out: Path, plan: Manifest, wish: JobRequest, content: bytes) -> str:
    if plan.data["source"]["kind"] != wish.kind:
        return f"it was a {plan.data['source']['kind']} and is a {wish.kind}"
    before = _content(out / LINES)
    try:
        was, now = ({line_to_sample(line).id: line for line in text.splitlines()} for text in (before, content))
    except InputError:
        return f"{out / LINES} is damaged, so the clips cannot be compared"
    changes = {
        "more": sorted(now.keys() - was.keys()),
        "fewer": sorted(was.keys() - now.keys()),
        "changed": sorted(id for id in was.keys() & now.keys() if was[id] != now[id]),
    }
    return ", ".join(f"{pluralize(len(ids), 'clip')} {how}, such as {ids[0]}" for how, ids in changes.items() if ids)


def _content(path: Path) -> bytes:
    """The content of a file of the plan; empty if it is lost."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        return b""
