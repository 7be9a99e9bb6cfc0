"""Regression tests of fuzzing: most of these gave a traceback, a message of a page, or a long wait."""

from __future__ import annotations

import json
import time

import pytest

from openavs.errors import InputError
from tests.robustness.fuzz.targets import PLAN, RESULT, ROW, RUN, VGGISH, checkpoint, survives, targets

TARGETS = targets()
DEEP = b"[" * 5000
TABLE = b"vid,uid,s,t,a_obj,split,label\n"
PNG = TARGETS["mask"].seeds[0][:33]
BEGUN = json.dumps(RUN).encode()
GOOD = (
    "recipe",
    "card",
    "prompt",
    "rle",
    "mark",
    "plan",
    "reply",
    "answer",
    "annotations",
    "safetensors",
    "jsonl",
    "csv",
    "parquet",
    "tar",
    "result",
    "run",
    "pickle",
    "mask",
    "sound",
)

FINDINGS = {
    "recipe: deep nesting took seconds and then the stack": ("recipe", b"name: " + DEEP),
    "recipe: the 99th of a month": ("recipe", b"name: 2026-11-99"),
    "recipe: a number of 5,000 digits": ("recipe", b"name: " + b"9" * 5000),
    "recipe: a tag without its value": ("recipe", b"name: !!bool maybe"),
    "recipe: a time that is none": ("recipe", b"name: !!timestamp soon"),
    "override: a key that is a page long is quoted in part": ("override", b"filtering." + b"x" * 5000 + b"=1"),
    "override: text that is a page long and no key": ("override", b"x" * 5000),
    "prompt: a header line of a page": ("prompt", b"name: p\n" + b"[" * 3000 + b"\n---\n[user]\nx\n"),
    "size: more than a float holds": ("size", b"1" * 400),
    "lock: deep nesting": ("lock", DEEP),
    "jsonl: deep nesting": ("jsonl", DEEP),
    "parquet: a reason of several lines": ("parquet", b"PAR1" + bytes(40) + b"PAR1"),
    "plan line: deep nesting": ("plan_line", DEEP),
    "tar: a header of 7 GB": ("tar", TARGETS["tar"].seeds[1]),
    "avsbench: a class of a page": (
        "avsbench",
        TABLE + b"v,u,0,0," + b"x" * 5000 + b",train,v1s\n",
    ),
    "result: deep nesting": ("result", DEEP),
    "result: masks of another size than the clip": ("result", json.dumps({**RESULT, "size": [8, 6]}).encode()),
    "result: a recipe that is none": ("result", json.dumps({**RESULT, "recipe": {"sample": True}}).encode()),
    "rle: seven letters that stand for 10^9 pixels": ("rle", b"\0\0\x7b\x86\0\0\x7b\x86TaRdim0"),
    "rle: runs beyond the mask": ("rle", b"\0\0\0\6\0\0\0\x08oooo0"),
    "run: a clip that took no number of seconds": ("run", BEGUN + b'\0{"id": "", "status": "", "seconds": null}'),
    "run: a clip that took infinite time": ("run", BEGUN + b'\0{"id": "", "status": "", "seconds": 1e999}'),
    "run: a stage that took infinite time": (
        "run",
        json.dumps({**RUN, "timings": {"localize": float("inf")}}).encode(),
    ),
    "folder: a run.json that is a number": ("folder", b"1"),
    "folder: classes that are a number": ("folder", b'{"masks": {"classes": true}}'),
    "mark: deep nesting": ("mark", DEEP),
    "mark: rows that are no rows": ("mark", json.dumps({"format": 1, "plan": "k", "rows": [""], "files": {}}).encode()),
    "mark: no rows": ("mark", b'{"format": 1, "plan": "k"}'),
    "journal: a line that is a number": ("journal", b"3\n"),
    "journal: a row without files": ("journal", json.dumps({"row": ROW}).encode()),
    "plan: no shards": ("plan", json.dumps({**PLAN, "shards": None}).encode()),
    "plan: a negative number of clips": ("plan", json.dumps({**PLAN, "source": {"clips": -1}}).encode()),
    "pickle: bytes that are neither": ("pickle", b"}b\x82\x02"),
    "pickle: a name of three is missing": ("pickle", checkpoint(VGGISH[:1] + VGGISH[2:])),
    "pickle: a length that is cut short": ("pickle", b"\x80\x02X\x01"),
    "pickle: tensors without rows": ("pickle", checkpoint(shape=())),
    "config: a model's card with a number of 5,000 digits": ("config", b"9" * 5000),
    "config: a kind of two lines": ("config", b'{"model_type": "a\\nb"}'),
    "picture: a chunk that claims 4 GB": (
        "picture",
        PNG + b"\xff\xff\xff\xf0IDAT" + bytes(40),
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_stays_found(name: str) -> None:
    target, data = FINDINGS[name]
    began = time.process_time()
    survives(TARGETS[target], data)
    assert time.process_time() - began < 2.0


def test_a_mask_that_claims_much_is_refused_before_it_is_made() -> None:
    with pytest.raises(InputError, match="31622 x 31622 pixels, over the limit"):
        TARGETS["rle"].run(FINDINGS["rle: seven letters that stand for 10^9 pixels"][1])


def test_examples_are_taken() -> None:
    """A target that refuses its own example would fuzz nothing but its refusal."""
    for name in GOOD:
        assert survives(TARGETS[name], TARGETS[name].seeds[0]), name


def test_a_pickle_that_would_run_code_runs_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    mark = tmp_path_factory.mktemp("ran") / "it"
    command = f"touch {mark}".encode()
    data = b"\x80\x02cposix\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"\x85R."
    assert not survives(TARGETS["pickle"], data)
    assert not mark.exists()
