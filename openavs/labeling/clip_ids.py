"""Ids for many clips at once: safe as folder names, all different, the same whatever the order of the source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from openavs.utils.fs import safe_id

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # what safe_id leaves as it is, for most names at once


def unique_ids(named: Sequence[tuple[str, str]]) -> list[str]:
    """One id for each (name, origin), all different even where a file system does not tell upper from lower case.

    A name that is safe and is had by one clip alone stays as it is. All others get a hash of their origin, which says
    what the clip is (its path below the source), so that each keeps its id when the others go.
    """
    shared = Counter(name.casefold() for name, _ in named)
    ids = [
        name if shared[name.casefold()] == 1 and _PLAIN.fullmatch(name) else _hashed(name, origin, shared)
        for name, origin in named
    ]
    used = Counter(id.casefold() for id in ids)
    if len(used) == len(ids):
        return ids
    taken: set[str] = set()
    for place in sorted(range(len(ids)), key=lambda i: named[i]):  # hashes that met, or a name that looks like one
        name, origin = named[place]
        salt = 0
        while ids[place].casefold() in taken or (used[ids[place].casefold()] > 1 and not salt):
            salt += 1
            ids[place] = safe_id(name, taken=[name], origin=f"{origin}\0{salt}")
        taken.add(ids[place].casefold())
    return ids


def _hashed(name: str, origin: str, shared: Counter[str]) -> str:
    return safe_id(name, taken=[name] if shared[name.casefold()] > 1 else (), origin=origin)
