"""Detector: an ONNX model for COCO's 80 classes; other phrases get no boxes.

For YOLOX (Apache-2.0) as its authors export it: BGR from 0 to 255, a raw head. A phrase without a COCO class gets
no boxes, which the pipeline reports as `not found`. For another detector, change `_read`, `decode` and the names below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from openavs.errors import ModelError
from openavs.stages.vocabulary import ClassMapper
from openavs.structures.types import Detection, ImageArray

NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,remote,keyboard,cell phone,microwave,oven,toaster,"
    "sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO = tuple(NAMES.split(","))  # COCO's "mouse" is the device, which a caption "mouse" rarely means

ALIASES = {
    "person": "man woman people boy girl child children baby kid infant singer speaker musician choir crowd audience",
    "bird": "hen rooster chicken duck goose parrot pigeon crow owl turkey gull magpie",
    "car": "ambulance taxi police_car race_car",
    "motorcycle": "motorbike moped scooter",
    "airplane": "aeroplane plane jet aircraft",
    "truck": "fire_truck fire_engine lorry",
    "boat": "ship motorboat speedboat sailboat canoe",
    "train": "locomotive subway tram steam_engine",
    "dog": "puppy wolf",
    "cat": "kitten",
    "cow": "bull ox calf cattle",
    "sheep": "lamb goat",
    "horse": "pony donkey",
    "sports ball": "ball basketball",
    "tv": "television",
    "cell phone": "telephone phone smartphone",
    "microwave": "microwave_oven",
    "hair drier": "hair_dryer",
}
GROUPS = {
    "animal": ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    "vehicle": ("car", "motorcycle", "bus", "train", "truck"),
}

Array = npt.NDArray[np.float32]


class CocoDetector:
    """Detects the COCO classes that the phrases name.

    A box that matches several phrases (dog, animal) is returned for each, the most specific first, because a frame uses
    only some of the clip's phrases; the pipeline removes duplicates. All 80 classes compete for a box before phrases
    are considered: a box with a higher score for dog than for person is not returned for "person".

    Args:
        model: the ONNX file; one input `[1, 3, S, S]`, one output `[1, cells, 5 + 80]`.
        floor: minimum score (objectness x class) of a returned box.
        overlap: IoU above which the lower-scoring box of the same class is removed.
        rival: the same for boxes of different classes.
    """

    def __init__(self, *, model: str, floor: float = 0.1, overlap: float = 0.45, rival: float = 0.75) -> None:
        if not Path(model).is_file():
            raise ModelError(
                f"the model file {model} does not exist; put it beside the recipe, or set detector.model=FILE"
            )
        try:
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"onnxruntime cannot load {model} ({type(error).__name__})") from error
        self._input = self._session.get_inputs()[0]
        outputs = self._session.get_outputs()[0].shape[-1]
        if outputs != 5 + len(COCO):
            raise ModelError(f"{model} has {outputs} values per box, not {5 + len(COCO)} as YOLOX trained on COCO")
        self.floor, self.overlap, self.rival = floor, overlap, rival
        self.models = {model: {"path": model}}
        aliases = {word.replace("_", " "): name for name, words in ALIASES.items() for word in words.split()}
        self._mapper = ClassMapper((*COCO, *GROUPS), aliases)

    def classes_of(self, phrase: str) -> tuple[str, ...]:
        """Return the COCO classes of a phrase, by name, alias or last word (`barking dog`); often none."""
        label, _ = self._mapper(phrase)
        return () if label is None else GROUPS.get(label, (label,))

    def knows(self, phrase: str) -> bool:
        """Return whether a phrase names one of the 80 classes."""
        return bool(self.classes_of(phrase))

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Return one list of boxes per image, best first; images without a known phrase are not processed."""
        return [self._detect(image, own) for image, own in zip(images, phrases, strict=True)]

    def _detect(self, image: ImageArray, phrases: Sequence[str]) -> list[Detection]:
        specific_first = sorted(phrases, key=lambda phrase: len(self.classes_of(phrase)))
        classes = {phrase: self.classes_of(phrase) for phrase in specific_first}
        if not any(classes.values()):
            return []
        boxes, scores, kinds = self._read(image)
        return [
            Detection((x0, y0, x1, y1), phrase, float(scores[i]))
            for i in suppress(boxes, scores, kinds, self.overlap, self.rival)
            for phrase, names in classes.items()
            if COCO[kinds[i]] in names
            for x0, y0, x1, y1 in [boxes[i].tolist()]
        ]

    def _read(self, image: ImageArray) -> tuple[Array, Array, npt.NDArray[np.int64]]:
        """Return boxes `[N, 4]` in pixels of the image, scores and classes, from the minimum score on."""
        side, (height, width) = self._input.shape[-1], image.shape[:2]
        scale = min(side / height, side / width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        padded = np.full((side, side, 3), 114, dtype=np.float32)  # the padding value of YOLOX's training
        padded[: size[1], : size[0]] = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        raw = self._session.run(None, {self._input.name: padded[None, :, :, ::-1].transpose(0, 3, 1, 2)})[0][0]
        scores, kinds = raw[:, 4] * raw[:, 5:].max(axis=1), raw[:, 5:].argmax(axis=1)
        sure = scores >= self.floor
        boxes = decode(raw[:, :4], side)[sure] / scale
        return np.clip(boxes, 0, [width, height, width, height]), np.minimum(scores[sure], 1.0), kinds[sure]


def decode(raw: Array, side: int) -> Array:
    """Decode YOLOX's head `[cells, 4]` (offsets and log sizes, strides 8, 16 and 32) to boxes in input pixels."""
    grids = [(np.stack(np.meshgrid(*[np.arange(side // s)] * 2), -1).reshape(-1, 2), s) for s in (8, 16, 32)]
    corner = np.concatenate([grid for grid, _ in grids])
    stride = np.concatenate([np.full((len(grid), 1), s) for grid, s in grids])
    middle, size = (raw[:, :2] + corner) * stride, np.exp(raw[:, 2:]) * stride
    return np.concatenate([middle - size / 2, middle + size / 2], axis=1)


def suppress(boxes: Array, scores: Array, kinds: npt.NDArray[np.int64], overlap: float, rival: float) -> list[int]:
    """Return the indices after non-maximum suppression, best first, with a higher IoU limit between classes."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        edges = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2])
        both = np.maximum(edges, 0).prod(axis=1)
        iou = both / np.maximum(area[best] + area[left] - both, 1e-9)
        left = left[iou <= np.where(kinds[left] == kinds[best], overlap, rival)]
    return kept
