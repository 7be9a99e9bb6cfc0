"""Mask files: all formats in copies of the data, and files that are not masks."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.mask_io import (
    decode_palette,
    png_size,
    read_binary_truth,
    read_index,
    read_palette,
    read_predicted_labels,
    read_probability,
)
from openavs.evaluation.datasets.tables import CLASSES
from openavs.structures.masks import voc_palette

Array = np.ndarray[Any, Any]
SIGNATURE = b"\x89PNG\r\n\x1a\n"

MASK = np.zeros((6, 8), dtype=bool)
MASK[1:4, 2:7] = True
LABELS = np.zeros((6, 8), dtype=np.uint8)
LABELS[1:4, 2:7] = 70
LABELS[4:, :3] = 22


def saved(tmp_path: Path, image: Image.Image | Array, **options: Any) -> Path:
    path = tmp_path / "mask.png"
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def with_palette(indices: Array, colors: Array) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), mode=None).convert("L")
    paletted = Image.frombytes("P", image.size, image.tobytes())
    paletted.putpalette(colors.astype(np.uint8).tobytes())
    return paletted


def png(width: int, height: int, depth: int, color: int, rows: bytes = b"") -> bytes:
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return SIGNATURE + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# -------------------------------------------------------------------------------------------------- binary truth


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.fromarray(MASK.astype(np.uint8) * 255), id="0 and 255"),
        pytest.param(Image.fromarray(MASK.astype(np.uint8)), id="0 and 1"),
        pytest.param(Image.fromarray(MASK), id="1 bit"),
        pytest.param(Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGB"), id="white in RGB"),
        pytest.param(Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGBA"), id="with alpha"),
        pytest.param(Image.fromarray(MASK.astype(np.uint8) * 255).convert("P"), id="palette of grays"),
        pytest.param(with_palette(MASK, voc_palette()), id="palette index 1"),
    ],
)
def test_a_binary_mask_in_all_its_forms(tmp_path: Path, image: Image.Image) -> None:
    mask = read_binary_truth(saved(tmp_path, image))
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, MASK)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_masks_of_one_value(tmp_path: Path, value: int) -> None:
    assert read_binary_truth(saved(tmp_path, np.full((4, 4), value, np.uint8))).all() == (value > 0)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Image.fromarray(MASK.astype(np.uint8) * 128), "holds the value 128"),
        (Image.fromarray(MASK.astype(np.uint8) + np.eye(6, 8, dtype=np.uint8) * 254), "both 1 and 255|value 254"),
        (Image.fromarray(voc_palette()[LABELS]), "has colors"),
        (with_palette(MASK, voc_palette()[[15, 0]]), "begins with another color"),
    ],
)
def test_other_values_of_a_binary_mask_raise(tmp_path: Path, image: Image.Image, says: str) -> None:
    with pytest.raises(InputError, match=rf"mask\.png.*({says})"):
        read_binary_truth(saved(tmp_path, image))


# --------------------------------------------------------------------------------------------------- predictions


def test_gray_values_are_probabilities(tmp_path: Path) -> None:
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert np.array_equal(read_probability(saved(tmp_path, values)), values)


@pytest.mark.parametrize("image", [Image.fromarray(MASK), Image.fromarray(MASK.astype(np.uint8) * 255).convert("P")])
def test_hard_masks_with_one_bit_or_a_gray_palette(tmp_path: Path, image: Image.Image) -> None:
    assert np.array_equal(read_probability(saved(tmp_path, image)), MASK * np.uint8(255))


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(voc_palette()[LABELS]), "an? 8-bit RGB"),
        (with_palette(LABELS, voc_palette()), "8-bit palette"),
        (Image.fromarray(LABELS).convert("LA"), "gray with alpha"),
    ],
)
def test_other_predictions_of_a_binary_mask_raise(tmp_path: Path, image: Image.Image, kind: str) -> None:
    with pytest.raises(InputError, match=f"{kind} PNG; a predicted mask is an 8-bit gray PNG"):
        read_probability(saved(tmp_path, image))


@pytest.mark.parametrize("image", [Image.fromarray(LABELS), with_palette(LABELS, voc_palette())])
def test_indices_are_the_values_of_gray_and_palette(tmp_path: Path, image: Image.Image) -> None:
    assert np.array_equal(read_index(saved(tmp_path, image)), LABELS)


def test_indices_of_a_small_palette(tmp_path: Path) -> None:
    path = saved(tmp_path, with_palette(LABELS % 3, voc_palette()[:4]))  # Pillow writes it with 2 bits
    assert path.read_bytes()[24] == 2
    assert np.array_equal(read_index(path), LABELS % 3)


def test_other_files_than_index_maps_raise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="RGB PNG; a label map is"):
        read_index(saved(tmp_path, voc_palette()[LABELS]))
    with pytest.raises(InputError, match="holds the value 71; class indices go from 0 to 70"):
        read_index(saved(tmp_path, LABELS + (LABELS == 70)))
    with pytest.raises(InputError, match="1-bit gray"):
        read_index(saved(tmp_path, MASK))
    path = tmp_path / "gray4.png"
    path.write_bytes(png(2, 1, 4, 0, b"\x00\x12"))  # Pillow would stretch 1 and 2 to 17 and 34
    with pytest.raises(InputError, match="4-bit gray"):
        read_index(path)


# ------------------------------------------------------------------------------------------------------- palette


@given(st.lists(st.integers(0, 70), min_size=1, max_size=50))
def test_the_palette_decodes_as_71_comparisons_would(indices: list[int]) -> None:
    rgb = voc_palette()[indices][None]
    slow = np.stack([(rgb == color).all(axis=-1) for color in voc_palette()[:71]]).argmax(axis=0)
    assert np.array_equal(decode_palette(rgb), slow)
    assert np.array_equal(decode_palette(rgb)[0], indices)


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_a_color_outside_the_palette_is_background(color: tuple[int, int, int]) -> None:
    known = {tuple(c) for c in voc_palette()[:71].tolist()}
    label = int(decode_palette(np.array(color, dtype=np.uint8)))
    assert (label != 0) == (color in known - {(0, 0, 0)})


def test_colors_and_indices_are_resized_alike(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, len(CLASSES), (31, 47)).astype(np.uint8)
    rgb = read_palette(saved(tmp_path, voc_palette()[labels]), (10, 12))
    assert np.array_equal(rgb, read_index(saved(tmp_path, labels), (10, 12)))
    pillow = Image.fromarray(labels).resize((12, 10), Image.Resampling.NEAREST)
    assert np.array_equal(rgb, np.asarray(pillow))


def test_colors_may_be_saved_with_a_palette(tmp_path: Path) -> None:
    """Image editors do so; colors count, and not their order in the palette."""
    drawn = with_palette(np.where(LABELS == 70, 2, (LABELS == 22) * 1), voc_palette()[[0, 22, 70]])
    assert np.array_equal(read_palette(saved(tmp_path, drawn)), LABELS)


def test_a_few_stray_colors_are_background_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    colors = voc_palette()[LABELS].copy()
    colors[2, 3] = (9, 9, 9)
    with caplog.at_level(logging.WARNING):
        labels = read_palette(saved(tmp_path, colors))
    assert labels[2, 3] == 0
    assert np.count_nonzero(labels) == np.count_nonzero(LABELS) - 1
    assert "1 pixels with colors outside the palette, such as (9, 9, 9)" in caplog.text


def test_another_palette_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the color \(130, 60, 10\), which is not in AVSBench-semantic's palette"):
        read_palette(saved(tmp_path, np.where(MASK[..., None], (130, 60, 10), 0).astype(np.uint8)))
    with pytest.raises(InputError, match="8-bit gray PNG; a mask in labels_rgb is an RGB PNG"):
        read_palette(saved(tmp_path, LABELS))


# ------------------------------------------------------------------------------------------------- files in general


@pytest.mark.parametrize(
    "read", [read_binary_truth, read_probability, read_index, read_palette, read_predicted_labels, png_size]
)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "is not a PNG", id="empty"),
        pytest.param(b"GIF89a" + bytes(40), "is not a PNG", id="a GIF"),
        pytest.param(SIGNATURE + bytes(4) + b"IHDR", "is a broken or truncated", id="cut in the header"),
        pytest.param(png(100_000, 100_000, 1, 0), "too many pixels", id="a bomb"),
        pytest.param(png(9000, 9000, 1, 0), "9000 x 9000 pixels", id="a large image"),
        pytest.param(png(0, 5, 8, 0), "is not a PNG", id="no pixels"),
        pytest.param(png(2, 2, 16, 0, bytes(10)), "16 bits", id="16-bit gray"),
        pytest.param(png(2, 2, 16, 2, bytes(26)), "16 bits", id="16-bit RGB"),
    ],
)
def test_other_files_than_masks_raise(tmp_path: Path, read: Callable[[Path], Any], data: bytes, says: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"bad\.png .*{says}"):
        read(path)


def test_a_predicted_label_map_holds_indices_or_colors(tmp_path: Path) -> None:
    for pixels in (LABELS, voc_palette()[LABELS]):
        assert np.array_equal(read_predicted_labels(saved(tmp_path, pixels)), LABELS)
    smooth = Image.fromarray(voc_palette()[LABELS]).resize((30, 20))
    with pytest.raises(InputError, match=r"the color \(.*\), which is not in .* not resized smoothly"):
        read_predicted_labels(saved(tmp_path, np.asarray(smooth)))


@pytest.mark.parametrize("read", [read_binary_truth, read_probability, read_index])
def test_a_truncated_file_is_named(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8)
    path = saved(tmp_path, noise)
    for size in (40, 60, path.stat().st_size // 2):
        cut = tmp_path / "cut.png"
        cut.write_bytes(path.read_bytes()[:size])
        with pytest.raises(InputError, match=r"cut\.png is .* truncated"):
            read(cut)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the mask .*none\.png: No such file"):
        read_index(tmp_path / "none.png")
