"""Example clips of an evaluation report: truth and prediction as a painted frame, and side by side in a player."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.predictions import find_missing, read_predictions
from openavs.media.clip import open_clip
from openavs.media.images import read_image
from openavs.structures.masks import mask_to_rle, small_size
from openavs.structures.types import BoolMask, ImageArray
from openavs.visualization.colors import Palette
from openavs.visualization.html import jpeg_data_uri, shrink_image
from openavs.visualization.player import MaskCodes, player_page

MAX_WIDTH = 320  # pixels of an example frame
MAX_FRAMES = 6  # of a clip in a player
TRUTH, HIT, MISS = "ground truth", "true positive", "false positive"
TRUTH_COLOR, CORRECT, WRONG = (0, 158, 115), (0, 114, 178), (230, 159, 0)
_TINT = 0.65  # opacity of the color inside a mask

Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class ExampleFrame:
    """One frame of a clip as a data URL, with a description; without `src`, `words` has the reason."""

    words: str
    src: str | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class _Masks:
    """Truth and prediction of a clip's annotated frames, `[K, H, W]` as label maps, and the frame with most of both."""

    truth: Labels
    predicted: Labels
    place: int


def _read_masks(dataset: Dataset, clip: BenchmarkClip, predictions: Path) -> _Masks:
    truth = dataset.read_truth(clip)
    absent = find_missing([clip], predictions).frames.get(clip.id, frozenset())
    predicted = read_predictions(dataset, clip, predictions, truth, absent)
    if dataset.task == "binary":
        predicted = (predicted > 127).astype(np.uint8)
    place = int(np.argmax([(t > 0).sum() + (p > 0).sum() for t, p in zip(truth, predicted, strict=True)]))
    return _Masks(truth, predicted, place)


def example_frame(dataset: Dataset, clip: BenchmarkClip, predictions: Path) -> ExampleFrame:
    """Paint the frame in which truth and prediction together cover most.

    Predicted pixels are blue if the truth agrees (label maps: in the class), else orange; the truth has a white
    outline. A file that cannot be read is reported in `words`, because it must not prevent the report.
    """
    try:
        masks = _read_masks(dataset, clip, predictions)
        index = clip.annotated[masks.place]
        (image,) = _read_images(clip, [index]).values()
    except (InputError, OSError) as error:
        return ExampleFrame(f"no picture: {error}")
    return _paint_example(dataset, clip, masks, image)


def play_example(dataset: Dataset, clip: BenchmarkClip, predictions: Path) -> dict[str, Any]:
    """Return the `picture` of `example_frame`, and the values of a `player` of truth and prediction side by side.

    Of long clips, the player has `MAX_FRAMES` frames at equal distances and that of the picture, each for a second. The
    player is None if a file cannot be read.
    """
    try:
        masks = _read_masks(dataset, clip, predictions)
        spread = np.linspace(0, len(masks.truth) - 1, min(MAX_FRAMES, len(masks.truth))).round().astype(int)
        places = sorted({masks.place, *map(int, spread)})
        images = _read_images(clip, [clip.annotated[place] for place in places])
    except (InputError, OSError) as error:
        return {"picture": ExampleFrame(f"no picture: {error}"), "player": None}
    picture = _paint_example(dataset, clip, masks, images[clip.annotated[masks.place]])
    data = _player_data(dataset, clip, masks, places, images)
    return {"picture": picture, "player": player_page(data, f"Truth and prediction of {clip.id}")}


def _player_data(
    dataset: Dataset, clip: BenchmarkClip, masks: _Masks, places: Sequence[int], images: Mapping[int, ImageArray]
) -> dict[str, Any]:
    codes = MaskCodes()
    truths: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for position, place in enumerate(places):
        index = clip.annotated[place]
        true, marked = masks.truth[place].astype(np.int64), masks.predicted[place].astype(np.int64)
        frame = {
            "index": index,
            "time": position + 0.5,
            "start": position,
            "stop": position + 1,
            "status": _frame_words(dataset, clip, index, true, marked),
            "candidates": [],
        }
        for frames, named in ((truths, _truth_masks(dataset, true)), (predictions, _hits(dataset, true, marked))):
            rows = [codes.row(name, None, mask_to_rle(mask), MAX_WIDTH) for name, mask in named.items() if mask.any()]
            frames.append({**frame, "segments": rows})
    size = small_size((masks.truth.shape[1], masks.truth.shape[2]), MAX_WIDTH)
    colors = {TRUTH: TRUTH_COLOR, HIT: CORRECT, MISS: WRONG}
    palette = Palette(dataset.classes)
    return {
        "size": images[clip.annotated[places[0]]].shape[:2],
        "end": len(places),
        "begin": places.index(masks.place),
        "threshold": None,
        **codes.to_dict({name: colors.get(name) or palette[name] for name in codes.names}),
        "views": [
            {"title": "Truth", "size": size, "frames": truths},
            {"title": "Prediction", "size": size, "frames": predictions},
        ],
        "moving": None,
        "images": [
            (position, jpeg_data_uri(images[clip.annotated[place]], 80)) for position, place in enumerate(places)
        ],
    }


def _truth_masks(dataset: Dataset, true: Labels) -> dict[str, BoolMask]:
    """The masks `[H, W]` of the truth: one, or those of its classes."""
    return {TRUTH: true > 0} if dataset.task == "binary" else _class_masks(dataset, true)


def _hits(dataset: Dataset, true: Labels, marked: Labels) -> dict[str, BoolMask]:
    """The masks `[H, W]` of the prediction: its true and false positives, or those of its classes."""
    if dataset.task != "binary":
        return _class_masks(dataset, marked)
    return {HIT: (marked > 0) & (true > 0), MISS: (marked > 0) & (true == 0)}


def _class_masks(dataset: Dataset, labels: Labels) -> dict[str, BoolMask]:
    return {_label_name(dataset, int(label)): labels == label for label in np.unique(labels) if label > 0}


def _paint_example(dataset: Dataset, clip: BenchmarkClip, masks: _Masks, image: ImageArray) -> ExampleFrame:
    true, marked = (labels[masks.place].astype(np.int64) for labels in (masks.truth, masks.predicted))
    words = _frame_words(dataset, clip, clip.annotated[masks.place], true, marked)
    painted = paint_masks(image, *(_resize_labels(labels, image.shape[:2]) for labels in (true, marked)))
    return ExampleFrame(words, jpeg_data_uri(painted, 80), image.shape[1], image.shape[0])


def _frame_words(dataset: Dataset, clip: BenchmarkClip, index: int, true: Labels, marked: Labels) -> str:
    return f"Frame {index + 1} of {len(clip.truth)}: {_describe(dataset, true, marked)}"


def _read_images(clip: BenchmarkClip, indices: Sequence[int]) -> dict[int, ImageArray]:
    """Read frames from their files, or decode them from the clip's video, and scale them to `MAX_WIDTH`."""
    if clip.times is None or clip.video is None:
        return {index: shrink_image(read_image(clip.frames[index]), MAX_WIDTH) for index in indices}
    frames = open_clip(clip.video, times=clip.times()).frames(frozenset(indices))
    found = {frame.index: shrink_image(frame.image, MAX_WIDTH) for frame in frames}
    if len(found) < len(indices):
        raise InputError(f"{clip.video} ends before frame {max(indices) + 1}")
    return found


def paint_masks(image: ImageArray, truth: Labels, predicted: Labels) -> ImageArray:
    """Paint two label maps `[H, W]` (0 is background) on an image `[H, W, 3]`, as `example_frame` describes."""
    painted = image.copy()
    hit = (predicted > 0) & (predicted == truth)
    for mask, color in ((hit, CORRECT), ((predicted > 0) & ~hit, WRONG)):
        painted[mask] = (painted[mask] * (1 - _TINT) + np.array(color, dtype=np.float32) * _TINT).astype(np.uint8)
    edge = _edges(truth)
    painted[edge & (truth == 0)] = 0  # a dark rim, visible on white objects too
    painted[edge & (truth > 0)] = 255
    return painted


def _resize_labels(labels: Labels, size: tuple[int, ...]) -> Labels:
    """A label map at the size of its frame, from which that of the benchmark's masks can differ."""
    image = Image.fromarray(labels.astype(np.int32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST))


def _edges(labels: Labels) -> BoolMask:
    """The pixels on both sides of every border between labels."""
    edge = np.zeros(labels.shape, dtype=np.bool_)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge


def _describe(dataset: Dataset, true: Labels, marked: Labels) -> str:
    if dataset.task != "binary":
        return f"truth {_class_names(dataset, true)}; prediction {_class_names(dataset, marked)}"
    return f"truth covers {100 * (true > 0).mean():.1f} %, prediction {100 * (marked > 0).mean():.1f} % of the frame"


def _class_names(dataset: Dataset, labels: Labels) -> str:
    found = [int(label) for label in np.unique(labels) if label > 0]
    return ", ".join(_label_name(dataset, label) for label in found) or "nothing"


def _label_name(dataset: Dataset, label: int) -> str:
    return dataset.classes[label] if label < len(dataset.classes) else str(label)
