"""Mutations of examples for hypothesis: of their bytes, and of their JSON where they are JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

ODD = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1e308,
    float("nan"),
    "",
    "x" * 300,
    "a\nb",
    "../../x",
    "\0",
    "\ud800",
)
ODD += ("\ud800", [], {}, [[]], [None], {"": None}, "1e999", "nan", [0] * 50)
TOKENS = (
    b"\0",
    b"\n",
    b"\r",
    b"\xff",
    b"\xef\xbb\xbf",
    b"'",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"- ",
    b"$",
    b"%",
)
TOKENS += (b"null", b"NaN", b"1e999", b"9" * 400, b"9" * 5000, b"[" * 3000, b"{a: " * 500, b"../", b"&a [*a]", b"*a")
TOKENS += (b"%", b"!!python/object/apply:os.system", b"<<: ")
TOKENS += (b"?", b"\xed\xa0\x80", b"\xe2\x80\xae", b"0x1F", b"1_000", b"~")


@st.composite
def edited(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """An example with up to eight edits: bytes set, taken out, repeated, or odd tokens put in."""
    body = bytearray(draw(st.sampled_from(list(seeds))))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(body)))
        end = min(len(body), at + draw(st.integers(0, 12)))
        how = draw(st.sampled_from(("set", "cut", "repeat", "token", "truncate")))
        if how == "set":
            body[at:end] = draw(st.binary(max_size=8))
        elif how == "cut":
            del body[at:end]
        elif how == "repeat":
            body[at:at] = body[at:end] * draw(st.sampled_from((1, 3, 200)))
        elif how == "token":
            body[at:end] = draw(st.sampled_from(TOKENS))
        elif draw(st.booleans()):
            del body[at:]
    return bytes(body)


@st.composite
def rearranged(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A JSON example with up to four of its values replaced by odd ones, taken out, or doubled."""
    whole = {"": copy.deepcopy(draw(st.sampled_from([json.loads(seed) for seed in seeds])))}
    for _ in range(draw(st.integers(1, 4))):
        place, key = draw(st.sampled_from(list(_places(whole))))
        how = draw(st.sampled_from(("odd", "odd", "remove", "double", "value")))
        if how == "odd" or place is whole:
            place[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif how == "remove":
            del place[key]
        elif how == "double" and isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        elif how == "value":
            place[key] = draw(st.integers() | st.floats() | st.text(max_size=8))
    return json.dumps(whole[""]).encode()


def _places(value: Any) -> Any:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def examples(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, and mutations of the seeds."""
    as_json = [seed for seed in seeds if _is_json(seed)]
    ways = [st.binary(max_size=200), edited(seeds), edited(seeds), edited(seeds)]
    return st.one_of(*ways, *([rearranged(as_json)] * 4 if as_json else []))


def _is_json(seed: bytes) -> bool:
    try:
        return isinstance(json.loads(seed), dict | list)
    except ValueError:
        return False
