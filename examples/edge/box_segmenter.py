"""Segmenter: a semantic network on each box, refined by a graph cut.

For DeepLabV3 on the 21 classes of Pascal VOC (Apache-2.0, 257 pixels). Only foreground against background is used, so a
fox that it classifies as a dog is still outlined. For another network, change `_foreground`; one with sharp masks needs
no `cut`.

`cut` is GrabCut (Rother et al. 2004) with color histograms instead of Gaussian mixtures, on SciPy's maximum flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from openavs.errors import ModelError
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import BoolMask, Box, ImageArray, Mask

BINS = 16  # of the color histograms, per channel
SMOOTH = 4.0  # cost of a cut between two equal pixels; the unary cost of a pixel is up to COLOR_LIMIT + 4
COLOR_LIMIT = 6.0

Field = npt.NDArray[np.float32]  # [H, W]


class BoxSegmenter:
    """Segments each box; masks have no score, because the network does not estimate it.

    Args:
        model: the ONNX file; input `[1, S, S, 3]` in [-1, 1], output `[1, S, S, K]`, logits with background first.
        margin: context around a box, as a share of its sides: network and color models need background.
        side: longer side of the image for the cut, in pixels; the mask is resized from there.
        rounds: updates of the color models from the previous cut; 0 uses the network's output only.
    """

    def __init__(self, *, model: str, margin: float = 0.2, side: int = 160, rounds: int = 3) -> None:
        if not Path(model).is_file():
            raise ModelError(
                f"the model file {model} does not exist; put it beside the recipe, or set segmenter.model=FILE"
            )
        try:
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"onnxruntime cannot load {model} ({type(error).__name__})") from error
        self._input = self._session.get_inputs()[0]
        if len(self._input.shape) != 4 or self._input.shape[3] != 3:
            raise ModelError(f"the input of {model} is {self._input.shape}, not [1, S, S, 3] as for DeepLab")
        self.margin, self.side, self.rounds = margin, side, rounds
        self.models = {model: {"path": model}}

    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """Return one list of masks per image. The network runs on each box, for a higher resolution."""
        return [
            [Mask(mask_to_rle(self._mask(image, box))) for box in of_image]
            for image, of_image in zip(images, boxes, strict=True)
        ]

    def _mask(self, image: ImageArray, box: Box) -> BoolMask:
        height, width = image.shape[:2]
        mask = np.zeros((height, width), dtype=np.bool_)
        x0, y0 = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
        x1, y1 = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
        if x0 >= x1 or y0 >= y1:
            return mask
        wide, high = round(self.margin * (x1 - x0)), round(self.margin * (y1 - y0))
        left, top, right, bottom = max(x0 - wide, 0), max(y0 - high, 0), min(x1 + wide, width), min(y1 + high, height)
        view = image[top:bottom, left:right]
        scale = min(1.0, self.side / max(view.shape[:2]))
        size = (max(1, round(view.shape[1] * scale)), max(1, round(view.shape[0] * scale)))
        small = np.asarray(Image.fromarray(view).resize(size, Image.Resampling.BOX))
        mask[y0:y1, x0:x1] = True
        inside = resized(mask[top:bottom, left:right].astype(np.float32), size) >= 0.5
        prior = np.where(inside, resized(self._foreground(view), size), 0.0).astype(np.float32)
        if prior.max() < 0.5:
            prior = ellipse(inside)  # no foreground detected: assume an object in the middle of the box
        current = prior
        for _ in range(self.rounds):  # the network's prior is fixed; the color models come from the previous cut
            current = cut(small, prior, current, inside).astype(np.float32)
        mask[top:bottom, left:right] &= resized(current, view.shape[1::-1]) > 0.5
        return mask

    def _foreground(self, view: ImageArray) -> Field:
        """Probability of foreground for each pixel of the network's output, in [0, 1]."""
        side = self._input.shape[1]
        resized_view = Image.fromarray(view).resize((side, side), Image.Resampling.BILINEAR)
        logits = self._session.run(None, {self._input.name: np.asarray(resized_view, np.float32)[None] / 127.5 - 1.0})[
            0
        ][0]
        exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(1.0 - exp[..., 0] / exp.sum(axis=-1), dtype=np.float32)


def resized(field: Field, size: tuple[int, int]) -> Field:
    """Resize a field to (width, height)."""
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR))


def ellipse(inside: BoolMask) -> Field:
    """Return a weak prior: 0.7 in an ellipse inside the box, 0.3 elsewhere."""
    rows, columns = np.nonzero(inside)
    y, x = np.indices(inside.shape)
    far = ((y - rows.mean()) / (np.ptp(rows) + 1)) ** 2 + ((x - columns.mean()) / (np.ptp(columns) + 1)) ** 2
    return np.where(inside & (far < 0.2), 0.7, 0.3).astype(np.float32)


def cut(image: ImageArray, prior: Field, current: Field, inside: BoolMask) -> BoolMask:
    """Return the minimum cut: unary costs from prior and color models, pairwise costs between adjacent pixels."""
    p = np.clip(prior, 0.02, 0.98)
    odds = np.log(p / (1 - p)) + np.clip(color_odds(image, current), -COLOR_LIMIT, COLOR_LIMIT)
    odds = np.rint(100 * np.where(inside, odds, -20.0).ravel()).astype(np.int32)  # the flow needs integers
    one, two, weight = adjacent_pixels(image)
    weight = np.rint(100 * SMOOTH * weight).astype(np.int32)
    pixels, source, sink = np.arange(odds.size), odds.size, odds.size + 1
    start = np.concatenate([one, two, np.where(odds > 0, source, pixels)])
    end = np.concatenate([two, one, np.where(odds > 0, pixels, sink)])
    graph = sparse.csr_matrix((np.concatenate([weight, weight, abs(odds)]), (start, end)), shape=(odds.size + 2,) * 2)
    rest = graph - maximum_flow(graph, source, sink).flow
    rest.eliminate_zeros()  # drops saturated edges; pixels that the source still reaches are foreground
    mask = np.zeros(odds.size + 2, dtype=np.bool_)
    mask[breadth_first_order(rest, source, return_predecessors=False)] = True
    return mask[:-2].reshape(prior.shape)


def color_odds(image: ImageArray, current: Field) -> Field:
    """Return the log odds of foreground against background for the color of every pixel."""
    red, green, blue = np.moveaxis(image.astype(np.int64) * BINS // 256, -1, 0)
    index = (red * BINS + green) * BINS + blue
    counts = [np.bincount(index.ravel(), weight.ravel(), BINS**3) for weight in (current, 1.0 - current)]
    smooth = [gaussian_filter(count.reshape(BINS, BINS, BINS), 1.0).ravel() + 1e-3 for count in counts]
    foreground, background = (count / count.sum() for count in smooth)
    return np.asarray(np.log(foreground / background)[index], dtype=np.float32)


def adjacent_pixels(image: ImageArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Field]:
    """Return pairs of adjacent pixels (8-connected) and their color similarity in [0, 1]."""
    ids = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])
    across, down = (ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])
    slopes = (ids[:-1, :-1], ids[1:, 1:]), (ids[:-1, 1:], ids[1:, :-1])
    pairs = (across, down, *slopes)
    one, two = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    distance = np.repeat([1.0, 1.0, math.sqrt(2), math.sqrt(2)], [pair[0].size for pair in pairs])
    colors = image.reshape(-1, 3).astype(np.float32)
    contrast = np.square(colors[one] - colors[two]).sum(axis=1)
    return one, two, np.exp(-contrast / (2 * contrast.mean() + 1e-6)) / distance if len(one) else distance
