"""Text embeddings of an index, by the captioner of a recipe: cosine similarity finds texts without a common word."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.registry import Registry

_BATCH = 4096  # texts at a time


class TextEncoder:
    """The text tower of a recipe's captioner.

    Args:
        recipe: a name, or a YAML file.
        expected: the models and revisions that the recipe has to resolve to; None: any.

    Raises:
        InputError: the captioner has no text embeddings, or the models differ.
        ModelError: the model cannot be loaded.
    """

    def __init__(self, recipe: str, expected: Any = None) -> None:
        loaded = load_recipe(recipe)
        section = loaded.stages()["captioner"]
        shared = {"device": loaded.device, "dtype": loaded.dtype, "offline": loaded.offline}
        self._captioner = Registry("captioner").build(section.use, section.options, shared, loaded.base)
        if not hasattr(self._captioner, "embed_phrases"):
            raise InputError(f"the captioner {section.use} of {recipe} has no text embeddings; give a recipe with clap")
        self.recipe = str(Path(recipe).absolute()) if Path(recipe).is_file() else recipe
        self.models = {name: facts.get("revision") for name, facts in self._captioner.models.items()}
        if expected is not None and self.models != expected:
            raise InputError(
                f"the embeddings of the index are of {_named(expected)}, and {recipe} now has {_named(self.models)}; "
                f"run 'openavs index' again with --encoder {recipe}"
            )

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors `[texts, d]`."""
        vectors: npt.NDArray[np.float32] = self._captioner.embed_phrases(list(texts))
        return vectors

    def store(self, db: sqlite3.Connection) -> None:
        """Embed the texts of an index that have no vector yet; all of them if the vectors are of another encoder."""
        facts = json.dumps({"recipe": self.recipe, "models": self.models}, sort_keys=True)
        if db.execute("SELECT value FROM facts WHERE name = 'encoder'").fetchone() != (facts,):
            db.execute("DELETE FROM vectors")
            db.execute("INSERT OR REPLACE INTO facts VALUES ('encoder', ?)", (facts,))
        new = db.execute("SELECT id, text FROM texts WHERE id NOT IN (SELECT text FROM vectors)").fetchall()
        for batch in (new[start : start + _BATCH] for start in range(0, len(new), _BATCH)):
            vectors = self.embed([text for _, text in batch]).astype("<f2")
            rows = ((number, vector.tobytes()) for (number, _), vector in zip(batch, vectors, strict=True))
            db.executemany("INSERT INTO vectors VALUES (?, ?)", rows)

    def similar(self, db: sqlite3.Connection, query: str, least: float) -> dict[int, float]:
        """Return the texts whose cosine similarity to the query is at least `least`, with the similarity."""
        own = self.embed([query])[0]
        found: dict[int, float] = {}
        cursor = db.execute("SELECT text, vector FROM vectors")
        while rows := cursor.fetchmany(_BATCH):
            vectors = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f2").reshape(len(rows), -1)
            cosines = vectors.astype(np.float32) @ own
            found |= {rows[i][0]: min(float(cosines[i]), 1.0) for i in np.flatnonzero(cosines >= least)}
        return found


def stored_encoder(db: sqlite3.Connection) -> TextEncoder | None:
    """Load the encoder of an index's embeddings; None for an index without."""
    row = db.execute("SELECT value FROM facts WHERE name = 'encoder'").fetchone()
    if row is None:
        return None
    facts = json.loads(row[0])
    return TextEncoder(facts["recipe"], facts["models"])


def _named(models: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({revision or 'part of openavs'})" for name, revision in models.items())
