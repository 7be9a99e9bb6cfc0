"""Detector: an ONNX model that knows COCO's 80 things and answers only the phrases that name some of them.

Made for YOLOX (Apache-2.0) as its authors export it: BGR from 0 to 255, a raw head. A phrase that names no COCO class
gets no boxes: the honest answer of a closed vocabulary, which the pipeline reports as `not found`. To bring a detector
of your own, change `_read` and `decode`, and the names below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image as Pictures

from openavs.errors import ModelError
from openavs.pipeline.class_mapping import ClassMapper
from openavs.structures.types import Detection, ImageArray

NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,remote,keyboard,cell phone,microwave,oven,toaster,"
    "sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO = tuple(NAMES.split(","))  # COCO's "mouse" is the computer's: nobody who hears one looks on a desk

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
    """Boxes of the COCO classes that a phrase names; a box that fits several (dog, animal) comes under each, narrowest
    first: not every phrase of a clip is asked at every frame, and the pipeline drops what is then a duplicate.

    All 80 classes compete for a box before the phrases are looked at: what is more a dog than a person is no `person`.

    Args:
        model: the ONNX file; one input `[1, 3, S, S]`, one output `[1, cells, 5 + 80]`.
        floor: boxes that score less (objectness x class) are not returned.
        overlap: of two boxes of a class with a greater IoU the better stays; of two classes, from `rival` on.
    """

    def __init__(self, *, model: str, floor: float = 0.1, overlap: float = 0.45, rival: float = 0.75) -> None:
        if not Path(model).is_file():
            raise ModelError(
                f"there is no model file {model}; put it beside the recipe, or give its place with detector.model=FILE"
            )
        try:
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        except Exception as problem:
            raise ModelError(f"{model} is no ONNX file that onnxruntime loads ({type(problem).__name__})") from problem
        self._input = self._session.get_inputs()[0]
        outputs = self._session.get_outputs()[0].shape[-1]
        if outputs != 5 + len(COCO):
            raise ModelError(
                f"{model} gives {outputs} numbers a box, not {5 + len(COCO)}; it is no YOLOX trained on COCO"
            )
        self.floor, self.overlap, self.rival = floor, overlap, rival
        self.models = {model: {"path": model}}
        aliases = {word.replace("_", " "): name for name, words in ALIASES.items() for word in words.split()}
        self._labeller = ClassMapper((*COCO, *GROUPS), aliases)

    def classes_of(self, phrase: str) -> tuple[str, ...]:
        """The COCO classes that a phrase names: by its name, an alias or its last word (`barking dog`); often none."""
        label, _ = self._labeller(phrase)
        return () if label is None else GROUPS.get(label, (label,))

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """One list of boxes per image, best first; an image without a known phrase is not looked at."""
        return [self._detect(image, asked) for image, asked in zip(images, phrases, strict=True)]

    def _detect(self, image: ImageArray, asked: Sequence[str]) -> list[Detection]:
        wanted = {phrase: self.classes_of(phrase) for phrase in sorted(asked, key=lambda p: len(self.classes_of(p)))}
        if not any(wanted.values()):
            return []
        boxes, scores, kinds = self._read(image)
        return [
            Detection((x0, y0, x1, y1), phrase, float(scores[i]))
            for i in suppress(boxes, scores, kinds, self.overlap, self.rival)
            for phrase, names in wanted.items()
            if COCO[kinds[i]] in names
            for x0, y0, x1, y1 in [boxes[i].tolist()]
        ]

    def _read(self, image: ImageArray) -> tuple[Array, Array, npt.NDArray[np.int64]]:
        """Boxes `[N, 4]` in pixels of the image, their scores and classes, down to the floor."""
        side, (height, width) = self._input.shape[-1], image.shape[:2]
        scale = min(side / height, side / width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        padded = np.full((side, side, 3), 114, dtype=np.float32)  # the grey that YOLOX was trained with
        padded[: size[1], : size[0]] = np.asarray(Pictures.fromarray(image).resize(size, Pictures.Resampling.BILINEAR))
        raw = self._session.run(None, {self._input.name: padded[None, :, :, ::-1].transpose(0, 3, 1, 2)})[0][0]
        scores, kinds = raw[:, 4] * raw[:, 5:].max(axis=1), raw[:, 5:].argmax(axis=1)
        sure = scores >= self.floor
        boxes = decode(raw[:, :4], side)[sure] / scale
        return np.clip(boxes, 0, [width, height, width, height]), np.minimum(scores[sure], 1.0), kinds[sure]


def decode(raw: Array, side: int) -> Array:
    """YOLOX's head `[cells, 4]`, offsets and log sizes in cells of 8, 16 and 32 pixels -> boxes in input pixels."""
    grids = [(np.stack(np.meshgrid(*[np.arange(side // s)] * 2), -1).reshape(-1, 2), s) for s in (8, 16, 32)]
    corner = np.concatenate([grid for grid, _ in grids])
    stride = np.concatenate([np.full((len(grid), 1), s) for grid, s in grids])
    middle, size = (raw[:, :2] + corner) * stride, np.exp(raw[:, 2:]) * stride
    return np.concatenate([middle - size / 2, middle + size / 2], axis=1)


def suppress(boxes: Array, scores: Array, kinds: npt.NDArray[np.int64], overlap: float, rival: float) -> list[int]:
    """The boxes that stay, best first: each drops the lesser ones it overlaps, rivals of other classes less readily."""
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
