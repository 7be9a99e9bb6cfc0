"""Adapters on a real GPU return the same as on the CPU, in three dtypes: every kernel exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.adapters import ADAPTERS, Answer, difference

pytestmark = pytest.mark.gpu
CLOSE = {"float32": 0.02, "bfloat16": 0.1, "float16": 0.05}  # of random networks, whose near ties may change places


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: adapter.make(tmp_path_factory.mktemp("gpu") / name) for name, adapter in ADAPTERS.items()}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, Answer]:
    return {name: adapter.ask(adapter.load(folders[name], "cpu", "float32")) for name, adapter in ADAPTERS.items()}


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("name", list(ADAPTERS))
def test_the_answer_is_that_of_the_cpu(
    folders: dict[str, Path], expected: dict[str, Answer], name: str, dtype: str
) -> None:
    adapter = ADAPTERS[name]
    answer = adapter.ask(adapter.load(folders[name], "cuda", dtype))
    if not any(isinstance(part, str) for part in answer):  # words of random networks may differ in 16 bits
        assert difference(answer, expected[name]) < CLOSE[dtype]
    elif dtype == "float32":
        assert answer == expected[name]
