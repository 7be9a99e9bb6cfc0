"""Segmenter: a class-map network looks into each box, and a graph cut makes its blurred answer follow the picture.

Made for DeepLabV3 on the 21 classes of Pascal VOC (Apache-2.0, 257 pixels). Only "some thing or background" is taken
from it, so a fox that it calls a dog is outlined all the same. To bring a segmenter of your own, change `_thing`; one
that answers with sharp masks needs no `cut`.

`cut` is GrabCut (Rother et al. 2004) with colour histograms in place of Gaussian mixtures, on SciPy's maximum flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image as Pictures
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from openavs.errors import ModelError
from openavs.structures.types import BoolMask, Box, ImageArray, Mask, mask_to_rle

BINS = 16  # of the colour histograms, each way
SMOOTH = 4.0  # what a cut between two equal neighbours costs; a pixel's own doubt costs up to COLOUR_LIMIT + 4
COLOUR_LIMIT = 6.0

Field = npt.NDArray[np.float32]  # [H, W]


class BoxSegmenter:
    """One mask per box, within the box; without a score, for the network has no opinion on its own outline.

    Args:
        model: the ONNX file; input `[1, S, S, 3]` in [-1, 1], output `[1, S, S, K]`, logits with background first.
        margin: what is shown around a box, as a share of its sides: the network and the colours need background.
        side: the longer side in pixels at which the cut is made; the mask is enlarged from there.
        rounds: how often the colours are learnt anew from the last cut; 0 takes the network's answer as it is.
    """

    def __init__(self, *, model: str, margin: float = 0.2, side: int = 160, rounds: int = 3) -> None:
        if not Path(model).is_file():
            raise ModelError(
                f"there is no model file {model}; put it beside the recipe, or give its place with segmenter.model=FILE"
            )
        try:
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        except Exception as problem:
            raise ModelError(f"{model} is no ONNX file that onnxruntime loads ({type(problem).__name__})") from problem
        self._input = self._session.get_inputs()[0]
        if len(self._input.shape) != 4 or self._input.shape[3] != 3:
            raise ModelError(f"{model} takes {self._input.shape}, not [1, S, S, 3]; it is no DeepLab of this layout")
        self.margin, self.side, self.rounds = margin, side, rounds
        self.models = {model: {"path": model}}

    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """One list of masks per image. At 257 pixels a look into each box is worth more than one at the whole."""
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
        small = np.asarray(Pictures.fromarray(view).resize(size, Pictures.Resampling.BOX))
        mask[y0:y1, x0:x1] = True
        inside = resized(mask[top:bottom, left:right].astype(np.float32), size) >= 0.5
        thing = np.where(inside, resized(self._thing(view), size), 0.0).astype(np.float32)
        if thing.max() < 0.5:
            thing = ellipse(inside)  # the network sees nothing: a thing fills the middle of its box
        found = thing
        for _ in range(self.rounds):  # the network is heard in every round; the colours come from the last cut
            found = cut(small, thing, found, inside).astype(np.float32)
        mask[top:bottom, left:right] &= resized(found, view.shape[1::-1]) > 0.5
        return mask

    def _thing(self, view: ImageArray) -> Field:
        """How likely each pixel of the network's own raster is to be some thing, in [0, 1]."""
        side = self._input.shape[1]
        picture = Pictures.fromarray(view).resize((side, side), Pictures.Resampling.BILINEAR)
        logits = self._session.run(None, {self._input.name: np.asarray(picture, np.float32)[None] / 127.5 - 1.0})[0][0]
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(1.0 - shares[..., 0] / shares.sum(axis=-1), dtype=np.float32)


def resized(field: Field, size: tuple[int, int]) -> Field:
    """A field at another (width, height)."""
    return np.asarray(Pictures.fromarray(field).resize(size, Pictures.Resampling.BILINEAR))


def ellipse(inside: BoolMask) -> Field:
    """A doubtful guess without any knowledge: 0.7 within the ellipse that fills most of the box, else 0.3."""
    rows, columns = np.nonzero(inside)
    y, x = np.indices(inside.shape)
    far = ((y - rows.mean()) / (np.ptp(rows) + 1)) ** 2 + ((x - columns.mean()) / (np.ptp(columns) + 1)) ** 2
    return np.where(inside & (far < 0.2), 0.7, 0.3).astype(np.float32)


def cut(image: ImageArray, thing: Field, found: Field, inside: BoolMask) -> BoolMask:
    """The cheapest outline: pixels pay for going against the network and their colours, neighbours for parting."""
    sure = np.clip(thing, 0.02, 0.98)
    odds = np.log(sure / (1 - sure)) + np.clip(colour_odds(image, found), -COLOUR_LIMIT, COLOUR_LIMIT)
    odds = np.rint(100 * np.where(inside, odds, -20.0).ravel()).astype(np.int32)  # the flow is in whole numbers
    one, two, bond = neighbours(image)
    bond = np.rint(100 * SMOOTH * bond).astype(np.int32)
    pixels, source, sink = np.arange(odds.size), odds.size, odds.size + 1
    start = np.concatenate([one, two, np.where(odds > 0, source, pixels)])
    end = np.concatenate([two, one, np.where(odds > 0, pixels, sink)])
    graph = sparse.csr_matrix((np.concatenate([bond, bond, abs(odds)]), (start, end)), shape=(odds.size + 2,) * 2)
    rest = graph - maximum_flow(graph, source, sink).flow
    rest.eliminate_zeros()  # a saturated edge is no way on; what the source still reaches is the thing
    mask = np.zeros(odds.size + 2, dtype=np.bool_)
    mask[breadth_first_order(rest, source, return_predecessors=False)] = True
    return mask[:-2].reshape(thing.shape)


def colour_odds(image: ImageArray, found: Field) -> Field:
    """Log odds of thing against background for the colour of every pixel."""
    red, green, blue = np.moveaxis(image.astype(np.int64) * BINS // 256, -1, 0)
    kind = (red * BINS + green) * BINS + blue
    counts = [np.bincount(kind.ravel(), share.ravel(), BINS**3) for share in (found, 1.0 - found)]
    smooth = [gaussian_filter(count.reshape(BINS, BINS, BINS), 1.0).ravel() + 1e-3 for count in counts]
    thing, rest = (count / count.sum() for count in smooth)
    return np.asarray(np.log(thing / rest)[kind], dtype=np.float32)


def neighbours(image: ImageArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Field]:
    """Pairs of touching pixels (eight a pixel) and how strongly they belong together, in [0, 1], by their colours."""
    ids = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])
    across, down = (ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])
    slopes = (ids[:-1, :-1], ids[1:, 1:]), (ids[:-1, 1:], ids[1:, :-1])
    pairs = (across, down, *slopes)
    one, two = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    far = np.repeat([1.0, 1.0, math.sqrt(2), math.sqrt(2)], [pair[0].size for pair in pairs])
    colours = image.reshape(-1, 3).astype(np.float32)
    unlike = np.square(colours[one] - colours[two]).sum(axis=1)
    return one, two, np.exp(-unlike / (2 * unlike.mean() + 1e-6)) / far if len(one) else far
