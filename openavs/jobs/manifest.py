"""The manifest of a job: which clips, in which shards, with which recipe.

`OUT/manifest.jsonl` has one line a clip, shard after shard. `OUT/work/manifest.json`, written last, holds what the
results depend on (recipe, classes, version) and the place of each shard in `manifest.jsonl`, so that no process reads
more of it than a shard. It also holds the SHA-256 of `manifest.jsonl`, which is compared when a job is opened. Neither
holds a path of this machine. `OUT/work/sizes` has the size of each clip's file in bytes, one line each: a clip whose
file was damaged or missing may get another file without becoming another job.

The samples of a fixed manifest (`label`) are part of its key: another source is another job. An open manifest
(`segment`, `evaluate`) has one clip a shard, and further clips are appended to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openavs
from openavs.errors import InputError
from openavs.jobs.checkpoint import WORK
from openavs.jobs.job import Job, ShardSpec
from openavs.jobs.job_store import store_of
from openavs.jobs.sample import Sample, line_to_sample, sample_to_line
from openavs.results.provenance import describe_differences, differing_keys
from openavs.results.serialization import encode, json_bytes
from openavs.utils.fs import atomic_write, read_regular
from openavs.utils.serialization import parse_json
from openavs.utils.text import pluralize

logger = logging.getLogger(__name__)

FORMAT = 3
SHARD_SIZE = 256
LINES, IDENTITY, SIZES = "manifest.jsonl", f"{WORK}/manifest.json", f"{WORK}/sizes"


@dataclass(frozen=True)
class JobRequest:
    """The contents of a manifest; where a number is None, that of an existing manifest is used, else the default.

    Attributes:
        kind: The kind of source, such as `folder` or `s4`.
        samples: The clips, of an open manifest those of this run alone.
        recipe: The resolved recipe.
        classes: Labels of class masks in the order of their indices; empty: binary labels, instance masks.
        data: The benchmark and split that the clips belong to, if any.
        command: The command that makes the job; all but `label` make an open manifest.
        shard_size: Clips completed together.
        threads: CPU threads of a worker.
        default_threads: Those of a new manifest where `threads` is None.
        limit: Number of samples that are taken.
    """

    kind: str
    samples: Sequence[Sample]
    recipe: Mapping[str, Any]
    classes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    command: str = "label"
    shard_size: int | None = None
    threads: int | None = None
    default_threads: int = 1
    limit: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether further samples may be appended."""
        return self.command != "label"

    @property
    def chosen(self) -> Sequence[Sample]:
        """The samples up to the limit."""
        return self.samples[: self.limit]


@dataclass(frozen=True)
class Manifest:
    """A manifest as it is on disk; `requested` are the shards of this run's samples, in the order of the request."""

    data: Mapping[str, Any]
    requested: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """A hash of all that the outputs depend on."""
        return str(self.data["key"])

    @property
    def clips(self) -> int:
        """Number of clips."""
        return int(self.data["source"]["clips"])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.data["shards"])

    @property
    def threads(self) -> int:
        """CPU threads of a worker."""
        return int(self.data["threads"])

    @property
    def is_open(self) -> bool:
        """Whether samples may be appended."""
        return bool(self.data["command"] != "label")

    def clips_of(self, shard: int) -> int:
        """Return the number of clips of a shard."""
        return int(self.data["shards"][shard][2])

    def specs(self, job: Job, numbers: Sequence[int]) -> Iterator[ShardSpec]:
        """Yield the specs of some shards."""
        for number in numbers:
            offset, size, _ = self.data["shards"][number]
            yield ShardSpec(job, number, offset, size)


def read_manifest(out: Path) -> Manifest | None:
    """Read the manifest of a result folder; None if it has none.

    Raises:
        InputError: the manifest is damaged or of another format.
    """
    path = out / IDENTITY
    try:
        data = parse_json(read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); give another --out or start again with --overwrite") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} was not written by this openavs; give another --out or start again with --overwrite")
    if not _is_valid(data):
        raise InputError(f"{path} is damaged; give another --out or start again with --overwrite")
    return Manifest(data, tuple(range(len(data["shards"]))))


def _is_valid(data: Mapping[str, Any]) -> bool:
    source, shards = data.get("source"), data.get("shards")
    if not isinstance(source, dict) or not isinstance(source.get("clips"), int) or not isinstance(shards, list):
        return False
    if not isinstance(data.get("threads"), int) or source["clips"] < 0:
        return False
    places = all(isinstance(s, list) and len(s) == 3 and all(isinstance(n, int) and n >= 0 for n in s) for s in shards)
    return places and all(isinstance(data.get(name), str) for name in ("key", "command"))


def make_manifest(out: Path, request: JobRequest) -> Manifest:
    """Write the manifest of a new job."""
    lines = [sample_to_line(sample) for sample in request.chosen]
    size = 1 if request.is_open else request.shard_size or SHARD_SIZE
    data = _contents(_identity(request, size, request.threads or request.default_threads), lines, request)
    (out / WORK).mkdir(exist_ok=True)
    _write(out, data, b"".join(lines), _sizes(request.chosen))
    return Manifest(data, tuple(range(len(data["shards"]))))


def check_manifest(out: Path, manifest: Manifest, request: JobRequest) -> Manifest:
    """Compare a manifest with the one that the request would make, and `manifest.jsonl` with its hash.

    Returns the manifest, with `requested` set. If `manifest.jsonl` or the table of shards of a fixed manifest was
    damaged, it is written again.

    Raises:
        InputError: the manifest was made of something else, which is named; or `manifest.jsonl` of an open manifest,
            which cannot be written again, was damaged.
    """
    saved = manifest.data
    identity = _identity(request, request.shard_size or saved["shard_size"], request.threads or saved["threads"])
    if request.is_open or manifest.is_open:
        _refuse_differences(out, manifest, differing_keys({key: saved.get(key) for key in identity}, identity))
        lines = [sample_to_line(sample) for sample in read_samples(out, manifest)]
        data = _contents(identity, lines, request)
        if saved != data:
            _write_again(out / IDENTITY, json_bytes(data))
        return _requested(out, Manifest(data), request)
    lines = [sample_to_line(sample) for sample in request.chosen]
    data = _contents(identity, lines, request)
    compared = [key for key in data if key not in ("key", "shards")]
    found = differing_keys({key: saved.get(key) for key in compared}, {key: data[key] for key in compared})
    others = {key: how for key, how in found.items() if not key.startswith("source.")}
    if len(others) < len(found):
        others = {"its source": f" ({_source_difference(out, manifest, request, lines)})", **others}
    _refuse_differences(out, manifest, others)
    content = b"".join(lines)
    if _read(out / LINES) != content:
        _write_again(out / LINES, content)
    if saved != data:
        _write_again(out / IDENTITY, json_bytes(data))
    return Manifest(data, tuple(range(len(data["shards"]))))


def extend_manifest(out: Path, manifest: Manifest, request: JobRequest) -> Manifest:
    """Append the samples of a request that an open manifest does not have yet, each as a shard."""
    samples = read_samples(out, manifest)
    known = {sample.id for sample in samples}
    new = [sample for sample in request.chosen if sample.id not in known]
    if new:
        lines = [sample_to_line(sample) for sample in (*samples, *new)]
        data = _contents({key: manifest.data[key] for key in _identity(request, 1, 1)}, lines, request)
        sizes = _read(out / SIZES) + _sizes(new)
        _write(out, data, b"".join(lines), sizes)
        manifest = Manifest(data)
    return _requested(out, manifest, request)


def new_samples(out: Path, manifest: Manifest, request: JobRequest) -> list[Sample]:
    """Return the samples of a request that an open manifest does not have.

    Raises:
        InputError: a clip of the same id has another source.
    """
    known = {sample.id: sample for sample in read_samples(out, manifest)}
    for sample in request.chosen:
        was = known.get(sample.id)
        if was is not None and replace(sample, bytes=None) != was:
            raise InputError(
                f"{out} already holds '{sample.id}' made from {_inputs(was, sample)}, not {_inputs(sample, was)}; "
                "give another folder"
            )
    return [sample for sample in request.chosen if sample.id not in known]


def read_samples(out: Path, manifest: Manifest) -> list[Sample]:
    """Read all samples of an open manifest.

    Raises:
        InputError: `manifest.jsonl` was damaged.
    """
    size = sum(length for _, length, _ in manifest.data["shards"])
    content = _read(out / LINES)[:size]  # a run that was killed while it appended may have left more
    if hashlib.sha256(content).hexdigest() != manifest.data["source"].get("sha256"):
        raise InputError(f"{out / LINES} is damaged; give another --out or start again with --overwrite")
    return [line_to_sample(line) for line in content.splitlines()]


def _inputs(sample: Sample, other: Sample) -> str:
    """Describe what a sample is made from, as far as it differs from another."""
    if sample.path != other.path or sample.audio == other.audio:
        return sample.source
    sound = f"the sound of {sample.audio}" if sample.audio else "its own sound"
    return f"{sample.source} with {sound}"


def _requested(out: Path, manifest: Manifest, request: JobRequest) -> Manifest:
    number = {sample.id: i for i, sample in enumerate(read_samples(out, manifest))}
    return replace(manifest, requested=tuple(number[sample.id] for sample in request.chosen if sample.id in number))


def _identity(request: JobRequest, shard_size: int, threads: int) -> dict[str, Any]:
    """Return what the key is made of; the source of a fixed manifest is added in `_contents`."""
    return {
        "format": FORMAT,
        "openavs": openavs.__version__,
        "command": request.command,
        "data": encode(dict(request.data), "data"),
        "masks": {"values": "class" if request.classes else "instance", "classes": list(request.classes)},
        "recipe": encode(dict(request.recipe), "recipe"),
        "shard_size": 1 if request.is_open else shard_size,
        "threads": threads,
    }


def _contents(identity: Mapping[str, Any], lines: Sequence[bytes], request: JobRequest) -> dict[str, Any]:
    """Return what `work/manifest.json` holds; `shards` are offset, size and number of lines of each shard."""
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    source = {"kind": request.kind, "clips": len(lines), "sha256": digest}
    whole = {**identity, "source": source, "limit": None if request.is_open else request.limit}
    keyed = identity if request.is_open else whole
    key = hashlib.sha256(json.dumps(keyed, sort_keys=True).encode()).hexdigest()[:16]
    shards, offset, size = [], 0, identity["shard_size"]
    for start in range(0, len(lines), size):
        own = lines[start : start + size]
        length = sum(map(len, own))
        shards.append([offset, length, len(own)])
        offset += length
    return {**whole, "key": key, "shards": shards}


def _refuse_differences(out: Path, manifest: Manifest, found: Mapping[str, str]) -> None:
    if "command" in found:
        command = manifest.data["command"]
        raise InputError(f"{out} holds results of 'openavs {command}'; give another --out, or use --overwrite")
    if found:
        other = "another recipe" if manifest.is_open else "another job"
        raise InputError(
            f"{out} holds results of {other}, which differs in {describe_differences(found)}; "
            "give another --out, or use --overwrite"
        )


def _write(out: Path, data: Mapping[str, Any], lines: bytes, sizes: bytes) -> None:
    atomic_write(out / LINES, lines)
    atomic_write(out / SIZES, sizes)
    atomic_write(out / IDENTITY, json_bytes(data))  # last: it names the others' content


def _write_again(path: Path, content: bytes) -> None:
    logger.warning("%s was lost or changed; it is written again", path)
    atomic_write(path, content)


def replaced_files(out: Path, manifest: Manifest, request: JobRequest) -> list[str]:
    """Return the requested clips whose files differ in size from what they were when their clips were added."""
    try:
        was = read_regular(out / SIZES).splitlines()
    except (FileNotFoundError, ValueError):
        was = []
    if len(was) < manifest.clips:
        raise InputError(f"{out / SIZES} is damaged; give another --out or start again with --overwrite")
    return [sample.id for i, sample in _places(manifest, request) if was[i] != _size(sample)]


def update_sizes(out: Path, manifest: Manifest, request: JobRequest) -> None:
    """Record the present sizes of the requested clips' files."""
    sizes = read_regular(out / SIZES).splitlines()[: manifest.clips]
    for i, sample in _places(manifest, request):
        sizes[i] = _size(sample)
    atomic_write(out / SIZES, b"".join(size + b"\n" for size in sizes))


def _places(manifest: Manifest, request: JobRequest) -> Iterator[tuple[int, Sample]]:
    """Yield the requested samples with their line numbers."""
    lines = manifest.requested if manifest.is_open else range(manifest.clips)
    return zip(lines, request.chosen, strict=True)


def _size(sample: Sample) -> bytes:
    return b"" if sample.bytes is None else str(sample.bytes).encode("ascii")


def _sizes(samples: Sequence[Sample]) -> bytes:
    """Return one line for each sample; an empty one if its file was missing."""
    return b"".join(_size(sample) + b"\n" for sample in samples)


def _source_difference(out: Path, manifest: Manifest, request: JobRequest, lines: Sequence[bytes]) -> str:
    kind = manifest.data["source"].get("kind")
    if kind != request.kind:
        return f"it was a {kind} and is a {request.kind}"
    before = _read(out / LINES).splitlines(keepends=True)
    try:
        was, now = ({line_to_sample(line).id: line for line in own} for own in (before, lines))
    except InputError:
        return f"{out / LINES} is damaged, so the clips cannot be compared"
    changes = {
        "more": sorted(now.keys() - was.keys()),
        "fewer": sorted(was.keys() - now.keys()),
        "changed": sorted(id for id in was.keys() & now.keys() if was[id] != now[id]),
    }
    return ", ".join(f"{pluralize(len(ids), 'clip')} {how}, such as {ids[0]}" for how, ids in changes.items() if ids)


def _read(path: Path) -> bytes:
    """Return the content of a file of the manifest; empty if it is lost."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        return b""


def shard_samples(spec: ShardSpec) -> list[Sample]:
    """Read the clips of a shard from its lines in the manifest."""
    path, store = spec.job.out / LINES, store_of(spec.job.out)
    if store is not None and not path.exists():  # a node of a cluster, which reads its own shards only
        lines = store.objects.read(LINES, spec.offset, spec.size)
    else:
        with path.open("rb") as file:
            file.seek(spec.offset)
            lines = file.read(spec.size)
    if len(lines) != spec.size:
        raise InputError(f"{path} was cut short while the job ran; run the same command again, which rewrites it")
    return [line_to_sample(line) for line in lines.splitlines()]
