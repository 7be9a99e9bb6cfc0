"""Targets of fuzzing: each reader of untrusted files and texts, as a function of bytes, with seeds.

A target returns, or raises one of `SENTENCES` with a single sentence; anything else is a finding.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from openavs.caching import wrappers as caching
from openavs.caching.store import StageCache, _entry_path, size_to_bytes
from openavs.config import resources
from openavs.config.recipe import load_recipe
from openavs.errors import InputError, ModelError
from openavs.evaluation.benchmark import load_benchmark
from openavs.evaluation.datasets import avsbench_ov, mask_io as pngs, tables as metadata
from openavs.exports.base import finished, run_classes, sampled_fps
from openavs.jobs import checkpoint as records, manifest as plan, sample as items
from openavs.jobs.job import Job
from openavs.jobs.progress import JobProgress
from openavs.labeling import files as source_files, table as source_manifest, webdataset as source_tars
from openavs.media.images import read_image
from openavs.models.chat_api import client
from openavs.models.chat_api.endpoint import ParseError, TransientError
from openavs.models.hub import ResolvedModel, check_folder
from openavs.pipeline.lockfile import ModelLockfile
from openavs.results.serialization import read_result, result_from_json, result_to_json
from openavs.stages.prompting import parse_prompt
from openavs.stages.translators.parsing import AnswerSchema, parse_answer
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask, voc_palette
from openavs.structures.types import Caption, ClipResult, FrameResult, Prompt, Rejection, Segment

SENTENCES = (InputError, ModelError, ParseError, TransientError)
_FOLDER = tempfile.TemporaryDirectory(prefix="openavs-fuzz-")  # goes with the process
SCRATCH = Path(_FOLDER.name)


@dataclass(frozen=True)
class Target:
    """A reader: `run` takes any bytes, `seeds` are some that it likes."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]


def survives(target: Target, data: bytes) -> bool:
    """Whether the bytes were taken; False where they were refused in a sentence. Anything else is raised."""
    try:
        target.run(data)
    except SENTENCES as error:
        said = str(error)
        assert said and "\n" not in said and len(said) < 2000, f"no sentence: {said!r:.500}"
        return False
    return True


def _file(name: str, data: bytes) -> Path:
    path = SCRATCH / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# ---------------------------------------------------------------------------------------------------------- recipes


def recipe(data: bytes) -> None:
    """A recipe's file, written back."""
    load_recipe(str(_file("recipe.yaml", data))).to_yaml()


def override(data: bytes) -> None:
    """`key=value` arguments, one a line."""
    load_recipe("tiny", _text(data).split("\n")).to_yaml()


def card(data: bytes) -> None:
    """A benchmark's card."""
    load_benchmark(str(_file("card.yaml", data)))


def lock(data: bytes) -> None:
    """A lock file of model commits."""
    ModelLockfile.load(_file("lock.yaml", data)).pinned("hf:a/b")


def prompt(data: bytes) -> None:
    """A prompt's file, rendered."""
    template = parse_prompt(_text(data), "p")
    template.render(**dict.fromkeys(template.variables, "$x {y}"))


def size(data: bytes) -> None:
    """The size of a cache."""
    size_to_bytes(_text(data))


# ------------------------------------------------------------------------------------------------ answers of models


def answer(data: bytes) -> None:
    """An LLM's answer; its first byte gives the number of frames or runs, which of them it is, and the vocabulary."""
    head = data[0] if data else 0
    vocabulary = ("dog", "church bell") if head & 16 else None
    rows = parse_answer(_text(data[1:]), AnswerSchema(head % 4 + 1, 4, vocabulary, bool(head & 32)))
    for row in filter(None, rows):
        assert len(row) <= 4 and all(phrase == phrase.strip() and len(phrase) <= 80 for phrase in row)


def reply(data: bytes) -> None:
    """A chat server's reply: status, headers and body."""
    from openavs.models.chat_api.endpoint import Endpoint

    head, _, body = data.partition(b"\n")
    status = int.from_bytes(head[:2], "big") % 600
    wait = head[2:].decode("latin-1")
    got = client.ChatResponse(status, {"retry-after": wait, "retry-after-ms": wait[::-1]}, body)
    if not got.ok:
        raise client.classify_error(got, Endpoint("http://x/v1"), "m") if status else ParseError("none")
    client.rejected_field(got, {"response_format": 1, "max_tokens": 1, "temperature": 1})
    client.retry_after(got.headers)
    client.message_text(client.parse_completion(got))


# ---------------------------------------------------------------------------------------------- manifests and tables


def jsonl(data: bytes) -> None:
    """A manifest of JSON lines, and its plan."""
    _planned(source_manifest.read(_file("m.jsonl", data)).samples)


def table(data: bytes) -> None:
    """A manifest in CSV."""
    _planned(source_manifest.read(_file("m.csv", data)).samples)


def parquet(data: bytes) -> None:
    """A manifest in Parquet."""
    _planned(source_manifest.read(_file("m.parquet", data)).samples)


def paths(data: bytes) -> None:
    """A list of paths."""
    _planned(source_files.read_list(_file("l.txt", data)).samples)


def tar(data: bytes) -> None:
    """A tar of samples."""
    found = _file("tars/t.tar", data)
    _planned(source_tars.read(found.parent, [found]).samples)


def _planned(found: Sequence[items.Sample]) -> None:
    for one in found:
        assert items.line_to_sample(items.sample_to_line(one)) == replace(one, bytes=None)
        assert "/" not in one.id and one.id not in ("", ".", "..")


def plan_line(data: bytes) -> None:
    """A line of a job's plan."""
    items.sample_to_line(items.line_to_sample(data))


def avsbench(data: bytes) -> None:
    """A benchmark's table of clips."""
    path = _file("metadata.csv", data)
    rows = metadata.read_table(path, {"vid": 0, "uid": 1, "a_obj": 4, "split": 5, "label": 6})
    metadata.check_names(path, rows, "uid", "label")
    metadata.check_unique(path, rows, "uid")
    for row in metadata.in_split(path, rows, "train"):
        metadata.sounding_classes(path, row)


def annotations(data: bytes) -> None:
    """YouTube-VIS annotations and their masks."""
    for video in avsbench_ov.read_annotations(_file("ann.json", data)).values():
        if video.length and video.size[0] * video.size[1] <= 1 << 20:
            video.label_map(0)


# ---------------------------------------------------------------------------------------------------------- results


def result(data: bytes) -> None:
    """A clip's result, through its file, and its masks."""
    _file("run/clips/a/result.json", data)
    found = read_result(SCRATCH / "run", "a")
    sampled_fps(found)
    assert result_from_json(result_to_json(found)) == found
    _masks(found)


def _masks(found: ClipResult) -> None:
    for frame in found.frames:
        for segment in frame.segments:
            if segment.mask.size[0] * segment.mask.size[1] <= 1 << 20:
                assert rle_to_mask(segment.mask).shape == segment.mask.size == found.size
                assert 0 <= segment.mask.area <= found.size[0] * found.size[1]


def rle(data: bytes) -> None:
    """A run-length code in a result: two sides of four bytes, then the code."""
    height, width, code = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big"), data[8:]
    frame = {**FRAME, "segments": [{**SEGMENT, "mask": {"size": [height, width], "counts": _text(code)}}]}
    found = result_from_json({**RESULT, "size": [height, width], "frames": [frame]})
    _masks(found)


def run(data: bytes) -> None:
    """A result folder's run.json and index.jsonl, which a job replaces."""
    one, _, lines = data.partition(b"\0")
    _file("again/run.json", one)
    _file("again/index.jsonl", lines)
    out = SCRATCH / "again"
    run_classes(out)
    request = plan.JobRequest("segment", [items.Sample("a", "a.mp4")], {"name": "tiny"}, command="segment")
    (out / "work").mkdir(exist_ok=True)
    made = plan.make_manifest(out, request)
    job = Job(out, made.key, SCRATCH, {"name": "tiny"})
    assert JobProgress(job, made, [0], {}).save("stopped")["clips"] == 1


def folder(data: bytes) -> None:
    """The other files of a result folder that `openavs export` reads."""
    _file("other/run.json", data)
    _file("other/clips/a/result.json", b"{}")
    run_classes(SCRATCH / "other")
    finished(SCRATCH / "other")


# ------------------------------------------------------------------------------------------------------ jobs, caches


def mark(data: bytes) -> None:
    """A shard's commit mark."""
    _file("job/work/shards/000000.json", data)
    found = records.read_completion(SCRATCH / "job", 0, "k")
    assert found is not None
    records.summarize(found["rows"])


def shard_journal(data: bytes) -> None:
    """A shard's journal."""
    records.ShardJournal.read(_file("j.jsonl", data)).forget_changed(SCRATCH)


def job_plan(data: bytes) -> None:
    """A job's plan."""
    _file("planned/work/manifest.json", data)
    found = plan.read_manifest(SCRATCH / "planned")
    assert found is not None
    assert found.key is not None and found.clips >= 0 and found.shards >= 0


class _Translator:
    def __init__(self) -> None:
        self.models: dict[str, dict[str, str]] = {}


def cache(data: bytes) -> None:
    """An entry of the stage cache: foreign bytes, and an entry whose hash is right."""
    store = StageCache(SCRATCH / "cache")
    key = "ab" * 32
    path = SCRATCH / "cache" / _entry_path("translator", key)
    for content in (data, None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            store.put("translator", key, data)
        else:
            path.write_bytes(content)
        store.get("translator", key)
    wrapper = caching.CachedTranslator(_Translator(), store, "f")
    found = wrapper._cached(
        "q", lambda: [], lambda a: a, lambda rows: [caching._translation(*row) for row in rows], lambda a: False
    )
    assert isinstance(found, list)


def cache_answer(data: bytes) -> None:
    """An answer in the cache that somebody else wrote, under the right key."""
    import hashlib

    store = StageCache(SCRATCH / "cache")
    for stage in (caching.CachedTranslator, caching.CachedCaptioner, caching.CachedDetector):
        key = hashlib.sha256(f"{stage.stage}\0f\0q".encode()).hexdigest()
        store.put(stage.stage, key, data)
    wrapper = caching.CachedTranslator(_Translator(), store, "f")
    for unpack in (
        lambda rows: [caching._translation(*row) for row in rows],
        lambda rows: [[Caption(*row) for row in own] for own in rows],
        lambda rows: [[caching._detection(*row) for row in own] for own in rows],
    ):
        wrapper._cached("q", lambda: [], lambda a: a, unpack, lambda a: False)


# --------------------------------------------------------------------------------------------------- models, pictures


def pickle(data: bytes) -> None:
    """A .pth checkpoint."""
    from openavs.models.convert import convert

    convert(_file("c.pth", data), SCRATCH / "converted")


def safetensors(data: bytes) -> None:
    """A model's folder: weights and what they are, checked and read."""
    from openavs.models.convert import read_config, read_weights

    _file("model/config.json", b'{"model_type": "x"}')
    _file("model/model.safetensors", data)
    found = ResolvedModel(SCRATCH / "model", "ref")
    check_folder(found.path, "ref")
    read_config(found, "x")
    read_weights(found)


def config(data: bytes) -> None:
    """A model's config.json, index and card."""
    from openavs.models.convert import read_config
    from openavs.models.hub import resolve
    from openavs.training.io import read_student

    place = SCRATCH / "configured"
    _file("configured/model.safetensors", b"")
    _file("configured/model.safetensors.index.json", data)
    _file("configured/config.json", data)
    _file("configured/README.md", b"---\n" + data + b"\n---\n")
    for read in (lambda: resolve(str(place)), lambda: read_config(ResolvedModel(place, "r"), "x")):
        try:
            read()
        except ModelError as error:
            assert "\n" not in str(error)
    (place / "model.safetensors.index.json").unlink()
    read_student(str(place))


def mask(data: bytes) -> None:
    """A PNG, as each kind of mask."""
    path = _file("m.png", data)
    refused = 0
    kinds = (pngs.read_binary_truth, pngs.read_probability, pngs.read_index, pngs.read_palette)
    readers = (*kinds, pngs.read_predicted_labels, pngs.png_size)
    for read in readers:
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error), str(error)
            refused += 1
    if refused == len(readers):
        raise InputError("no mask")


def picture(data: bytes) -> None:
    """A picture that is looked at."""
    read_image(_file("p.png", data))


def sound(data: bytes) -> None:
    """A WAVE file."""
    from openavs.media.audio import read_audio

    read_audio(_file("s.wav", data))


# ------------------------------------------------------------------------------------------------------------ seeds


def _png(pixels: np.ndarray, palette: bool = False) -> bytes:
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _example() -> ClipResult:
    bits = np.zeros((6, 8), dtype=bool)
    bits[1:4, 2:7] = True
    heard = Caption("a dog barking", 0.8, 0.0, 1.0, "what is heard?")
    asked = Prompt("dog", "dog", "llm", (heard,))
    found = Segment(mask_to_rle(bits), (2.0, 1.0, 7.0, 4.0), "dog", 0.6, 0.9, "dog", "exact", 1)
    frame = FrameResult(0, 0.5, False, (heard,), (asked,), (found,), (Rejection("bell", "not found"),))
    return ClipResult("a", (6, 8), (frame,), "a.mp4", {"name": "tiny", "sample": {"fps": 1.0}}, {}, {"total": 1.0})


RESULT = result_to_json(_example())
FRAME = RESULT["frames"][0]
SEGMENT = FRAME["segments"][0]
PLAIN_RLE = RLE((6, 8), SEGMENT["mask"]["counts"])
ROW = {"id": "a", "status": "failed", "reason": "missing", "rejected": {"not found": 1}}
MARK = {"format": records.FORMAT, "key": "k", "shard": 0, **records.summarize([ROW]), "rows": [ROW], "files": {"a": {}}}
PLAN = {"format": plan.FORMAT, "key": "k", "command": "label", "threads": 1, "shards": [[0, 10, 1]]}
PLAN |= {"source": {"clips": 1, "kind": "folder", "sha256": ""}}
RUN = {"format": 1, "recipe": {"name": "tiny"}, "masks": {"values": "instance", "classes": []}, "data": {}}
RUN |= {"models": {}, "timings": {}, "status": "running"}
LINE = {"id": "a", "status": "ok", "seconds": 1.0}
JOURNALED = {"row": ROW, "files": {"x": "0"}, "timing": {"seconds": 1.0, "stages": {"detect": 0.5}}}
VIS = {
    "videos": [{"id": 1, "height": 6, "width": 8, "file_names": ["a/0.jpg"]}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [{"video_id": 1, "category_id": 1, "segmentations": [SEGMENT["mask"]]}],
}
COMPLETION = {"choices": [{"message": {"content": '{"frames": [["dog"]]}'}, "finish_reason": "stop"}]}
PROMPT = b"name: p\nversion: 1\nvariables: captions\nsummary: s\n---\n[system]\nYou.\n[user]\nHeard: $captions, $$5\n"
CSV = b"vid,uid,s_min,s_sec,a_obj,split,label\nv,u1,0,0,dog_cat,train,v1s\nw,u2,0,0,horse,train,v1m\n"


def _json(data: object) -> bytes:
    return json.dumps(data).encode()


def _tiny(kind: str, name: str) -> bytes:
    return resources.find(kind, name).read_bytes()


def _claiming(kind: bytes) -> bytes:
    """A tar whose first member is a header of 7 GB for the next one."""
    import tarfile

    info = tarfile.TarInfo("a.mp4")
    info.type, info.size = kind, 7 << 30
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def _archive() -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("a.mp4", "a.wav", "../b.mp4"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"xyz"))
    return buffer.getvalue()


def _parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet as files

    buffer = io.BytesIO()
    files.write_table(pyarrow.table({"path": ["a.mp4", "b.mp4"], "id": ["a", "b"], "classes": [["dog"], []]}), buffer)
    return buffer.getvalue()


VGGISH = ("features.0.weight", "embeddings.0.weight", "embeddings.4.weight")


def checkpoint(names: Sequence[str] = VGGISH, shape: tuple[int, ...] = (2, 2)) -> bytes:
    """The output of torch.save for a VGGish, or for other tensors."""
    import torch

    buffer = io.BytesIO()
    torch.save({"model": {name: torch.zeros(shape) for name in names}, "best": np.float64(1.0)}, buffer)
    return buffer.getvalue()


def _weights() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"a": torch.zeros(2), "b": torch.ones(3, 1)})


def _wave() -> bytes:
    from openavs.media.audio import write_wav
    from openavs.structures.types import Waveform

    write_wav(SCRATCH / "seed.wav", Waveform(np.zeros(800, np.float32), 8000))
    return (SCRATCH / "seed.wav").read_bytes()


def targets() -> dict[str, Target]:
    """All of them by name."""
    binary = np.array([[0, 255], [255, 0]], np.uint8)
    masks = [_png(binary), _png(binary // 255, palette=True), _png(np.zeros((3, 3, 3), np.uint8))]
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(jpeg, "JPEG")
    vocabulary = b"filtering.box_threshold=0.3\nvocabulary=[dog, cat]\ncaptioner.top_k=3\ndevice=cpu"
    return {
        "recipe": Target(recipe, [_tiny("pipelines", name) for name in ("tiny", "paper", "sam3")]),
        "override": Target(override, [vocabulary, b"aliases={a: dog}", b"sample.fps=1e9", b"tracker=null"]),
        "card": Target(card, [_tiny("eval", name) for name in ("s4", "avss", "ov")]),
        "lock": Target(lock, [b"hf:a/b: " + b"0" * 40]),
        "prompt": Target(prompt, [PROMPT, _tiny("prompts", "default")]),
        "size": Target(size, [b"5GB", b"1.5 T", b"100"]),
        "answer": Target(
            answer,
            [
                b'\0{"frames": [["dog"]]}',
                b'\x13```json\n{"frames": [["dog"],[],[],[]]}```',
                b"\0[",
                b'\x22{"0": ["dog"], "1": [], "2": "a bell"}',
                b'\x32{"0": ["church bell"], "1": ["do',
            ],
        ),
        "reply": Target(reply, [b"\0\xc820\n" + _json(COMPLETION), b"\1\xadWed, 21 Oct 2026 07:28:00 GMT\n{}"]),
        "jsonl": Target(jsonl, [b'{"id": "a", "path": "a.mp4", "classes": ["dog"]}\n{"video": "b.mp4", "uid": 3}\n']),
        "csv": Target(table, [b'id,path,group,classes\na,a.mp4,v2,"dog,cat"\nb,b.mp4,,\n']),
        "parquet": Target(parquet, [_parquet()]),
        "list": Target(paths, [b"a.mp4\n/b/c.mp4\n../d.mp4\n"]),
        "tar": Target(tar, [_archive(), *map(_claiming, (b"x", b"g", b"L", b"K"))]),
        "plan_line": Target(plan_line, [b'{"id":"a","path":"a.mp4","video_slice":["a.mp4",512,9,".mp4"]}']),
        "avsbench": Target(avsbench, [CSV]),
        "annotations": Target(annotations, [_json(VIS), _json(VIS).replace(b'"counts": "', b'"counts": [48], "x": "')]),
        "result": Target(result, [_json(RESULT)]),
        "rle": Target(rle, [bytes((0, 0, 0, 6, 0, 0, 0, 8)) + PLAIN_RLE.counts.encode(), b"\0\0{\x86\0\0{\x86TaRdim0"]),
        "run": Target(run, [_json(RUN) + b"\0" + _json(LINE) + b"\n"]),
        "folder": Target(folder, [_json(RUN)]),
        "mark": Target(mark, [_json(MARK)]),
        "journal": Target(
            shard_journal,
            [b'{"start": true}\n{"begin": "a"}\n' + _json(JOURNALED) + b"\n"],
        ),
        "plan": Target(job_plan, [_json(PLAN)]),
        "cache": Target(cache, [b"openavs-cache 1 00\nx", _json({"answer": [], "revisions": {}})]),
        "cache_answer": Target(
            cache_answer,
            [_json({"answer": [[[["dog"]], "llm", None, 1]], "revisions": {}}), b'{"answer": [[["a",1,0,1,""]]]}'],
        ),
        "pickle": Target(pickle, [checkpoint()]),
        "safetensors": Target(safetensors, [_weights()]),
        "config": Target(
            config, [b'{"model_type": "openavs-student", "format": 1, "config": {}, "student": "s"}', b"license: mit"]
        ),
        "mask": Target(mask, masks),
        "picture": Target(picture, [*masks, jpeg.getvalue()]),
        "sound": Target(sound, [_wave()]),
    }
