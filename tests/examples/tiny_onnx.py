"""Small ONNX models, written byte by byte: onnxruntime reads models and cannot make them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def write_onnx(
    path: Path, shape: list[int], nodes: list[tuple[str, list[str], str]], constants: dict[str, Array]
) -> str:
    """A graph from the input `x` of the given shape to the output of the last node; a node is (kind, inputs, output).

    Only what these tests need of the format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
    """
    graph = b"".join(_part(1, _node(*node)) for node in nodes)
    graph += _part(2, b"g") + b"".join(_part(5, _tensor(name, value)) for name, value in constants.items())
    graph += _part(11, _value("x", shape)) + _part(12, _value(nodes[-1][2], OUTPUTS[nodes[-1][2]]))
    path.write_bytes(_number(1, 8) + _part(7, graph) + _part(8, _number(2, 13)))
    return str(path)


OUTPUTS = {"boxes": [1, 84, 85], "classes": [1, 33, 33, 2]}


def _node(kind: str, inputs: list[str], output: str) -> bytes:
    return b"".join(_part(1, name.encode()) for name in inputs) + _part(2, output.encode()) + _part(4, kind.encode())


def _tensor(name: str, value: Array) -> bytes:
    dims = b"".join(_number(1, size) for size in value.shape)
    return dims + _number(2, 1) + _part(8, name.encode()) + _part(9, value.astype("<f4").tobytes())


def _value(name: str, shape: list[int]) -> bytes:
    dims = b"".join(_part(1, _number(1, size)) for size in shape)
    return _part(1, name.encode()) + _part(2, _part(1, _number(1, 1) + _part(2, dims)))


def _part(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low = bytes([value & 127 | (128 if value > 127 else 0)])
    return low if value < 128 else low + _varint(value >> 7)
