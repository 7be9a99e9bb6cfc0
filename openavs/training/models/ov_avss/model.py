"""OV-AVSS, the open-vocabulary student: class-agnostic masks of sounding objects, classified by CLIP.

"Open-Vocabulary Audio-Visual Semantic Segmentation" (arXiv 2407.21721), written after a description of the published
code. The localizer learns no classes, so it takes any vocabulary at run time. Differences: the clips of a batch do not
mix (the published decoder is correct for one clip only), any number of frames, and cached audio features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openavs.errors import InputError, ModelError
from openavs.evaluation.datasets.base import Task
from openavs.models.hub import resolve
from openavs.training.base import (
    InstanceMask,
    Size,
    Student,
    StudentBatch,
    StudentPrediction,
    TransformConfig,
    normalize_images,
    resize_to_original,
    take_matching,
)
from openavs.training.models.ov_avss.classifier import MaskClassifier
from openavs.training.models.ov_avss.config import OvAvssStudentConfig
from openavs.training.models.ov_avss.criterion import OBJECT, MatcherTarget, localizer_loss
from openavs.training.models.ov_avss.network import STRIDE, ClipOutput, OvAvssNetwork, from_mask2former

BACKGROUND = "background"
NO_CLIP = (
    "this ov-avss has no CLIP to classify masks; give model.clip=FOLDER to the training, or set 'clip' in the "
    "student's config.json"
)
Output = list[list[ClipOutput]]
"""For each clip the outputs of each layer; the last one is the prediction."""


class OvAvss(Student):
    """The localizer with its loss; it predicts binary masks, or masks of the classes of a vocabulary."""

    name = "ov-avss"
    Config = OvAvssStudentConfig

    def __init__(self, config: OvAvssStudentConfig) -> None:
        super().__init__(config)
        self.network = OvAvssNetwork(config.network())
        self._classifier: MaskClassifier | None = None

    def check(self, task: Task, classes: Sequence[str]) -> None:
        """Require a CLIP for label maps; the masks of every benchmark are suitable for training."""
        if task != "binary" and self.config.clip is None:
            raise InputError(NO_CLIP)

    def prepare(self, task: Task) -> None:
        """Load the CLIP that classifies masks, if the task has classes."""
        if task != "binary" and self.config.clip is not None:
            resolve(self.config.clip, self.offline)

    def view(self, training: bool) -> TransformConfig:
        """Return the transforms: whole frames, resized by their short side; in training with random size and flip."""
        sides = self.config.sides if training else (self.config.test_image_size,)
        return TransformConfig(sides, "keep", multiple=STRIDE, flip=training, frames=self.config.frames)

    def initialize(self, part: str, ref: str) -> None:
        """Initialize from a Mask2FormerForUniversalSegmentation (`mask2former`) or ImageNet weights (`backbone`)."""
        if part == "mask2former":
            donor = from_mask2former(resolve(ref, self.offline), audio_frames=self.config.frames)
            if left := take_matching(self.network, donor.state_dict(), ref):
                raise ModelError(
                    f"the Mask2Former '{ref}' is of other sizes than this student ({len(left)} tensors, such as "
                    f"{left[0]}); set its 'model.backbone', 'model.queries' and other sizes to the checkpoint's"
                )
        elif part == "backbone":
            self._initialize_backbone(ref)
        else:
            super().initialize(part, ref)

    def _initialize_backbone(self, ref: str) -> None:
        from openavs.models.hub import load_pretrained

        fresh: Any = self.network.model.pixel_level_module.encoder
        found = resolve(ref, self.offline)
        loaded = load_pretrained(type(fresh), found, torch.float32, "cpu", out_features=list(fresh.out_features))
        if left := take_matching(fresh, loaded.state_dict(), ref):
            raise ModelError(
                f"the backbone '{ref}' is not a {self.config.backbone} ({left[0]} does not fit); "
                "set 'init.backbone' to its weights"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups: a tenth of the rate for the backbone, no weight decay of norms, embeddings and positions."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        undecayed = _undecayed(self.network)
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                key = (name.startswith("model.pixel_level_module.encoder."), name in undecayed)
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "scale": 0.1 if in_backbone else 1.0, **({"weight_decay": 0.0} if free else {})}
            for (in_backbone, free), parameters in groups.items()
        ]

    def forward(self, batch: StudentBatch) -> Output:
        """Return the outputs of each clip; they do not depend on the other clips of the batch."""
        # Clips of one length and size are processed together, without the padding of the batch.
        shapes = [(int(n), *_padded(inner)) for n, inner in zip(batch.present.sum(1), batch.inner, strict=True)]
        outputs: dict[int, list[ClipOutput]] = {}
        for shape in dict.fromkeys(shapes):
            rows = [i for i, other in enumerate(shapes) if other == shape]
            pixels = torch.stack([_pixels(batch, row, shape[1:]) for row in rows])
            audio = torch.stack([batch.audio[row][batch.present[row]] for row in rows])
            outputs |= dict(zip(rows, self.network(pixels, audio), strict=True))
        return [outputs[row] for row in range(len(shapes))]

    def loss(self, output: Output, batch: StudentBatch) -> dict[str, Tensor]:
        """Return the losses of `localizer_loss` over the clips with labeled frames."""
        labeled = (batch.labeled & batch.present).any(1).tolist()
        rows = [row for row, known in enumerate(labeled) if known]
        if not rows:  # the zero stays in the graph: on several devices every parameter needs a gradient
            zero = torch.stack([layer.masks.sum() for own in output for layer in own]).sum() * 0.0
            return {"loss": zero, **dict.fromkeys(("objectness", "mask", "dice"), zero.detach())}
        targets = [_target(batch, row) for row in rows]
        return localizer_loss([output[row] for row in rows], targets, self.config.weights())

    @torch.no_grad()
    def predict(self, batch: StudentBatch, classes: Sequence[str] | None) -> list[StudentPrediction]:
        """Return binary masks, the union of the sounding objects, or the queries classified by `MaskClassifier`.

        Raises:
            InputError: `classes` are given and the student has no CLIP.
        """
        names = [name for name in classes or () if name != BACKGROUND]
        clips = zip(self(batch), batch.inner, batch.sizes, strict=True)
        if classes is None:
            return [_binary(own[-1], inner, size) for own, inner, size in clips]
        return [self.classify_queries(batch, row, own[-1], names) for row, (own, _, _) in enumerate(clips)]

    @torch.no_grad()
    def classify_queries(
        self, batch: StudentBatch, row: int, output: ClipOutput, names: Sequence[str]
    ) -> StudentPrediction:
        """Classify the queries of clip `row` and return the best pairs of query and class."""
        inner, size = batch.inner[row], batch.sizes[row]
        confident = output.objectness.float().softmax(-1)[:, OBJECT] >= (self.config.objectness or 0.0)
        queries = confident.nonzero()[:, 0]
        probabilities = self._load_classifier(batch.frames.device).classify(
            _frames(batch, row), output.masks[queries], names
        )
        frames: list[list[InstanceMask]] = [[] for _ in range(output.masks.shape[1])]
        for place, label, score in best_pairs(probabilities, self.config.top, self.config.threshold):
            query = int(queries[place])
            for instances, logits in zip(frames, _resize_masks(output.masks[query], inner, size), strict=True):
                if (mask := logits > 0).any():
                    instances.append(InstanceMask(mask.cpu().numpy(), score, names[label], query))
        return StudentPrediction(tuple(map(tuple, frames)))

    def _load_classifier(self, device: torch.device) -> MaskClassifier:
        """Return the classifier, loaded at first use; it is not a submodule, so its weights are not saved."""
        if self.config.clip is None:
            raise InputError(NO_CLIP)
        if self._classifier is None or self._classifier.device != device:
            self._classifier = MaskClassifier(
                self.config.clip,
                device,
                batch_size=self.config.crop_batch,
                centered=self.config.crops == "centered",
                hard=self.config.crop_edges == "hard",
                offline=self.offline,
            )
        return self._classifier


def best_pairs(probabilities: Tensor, top: int, threshold: float) -> list[tuple[int, int, float]]:
    """Return the `top` best (query, class, probability) of `[Q, classes]` above the threshold, best first.

    A query can occur with several classes.
    """
    flat = probabilities.float().flatten()
    best = flat.topk(min(top, len(flat)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(*divmod(place, probabilities.shape[1]), score) for place, score in pairs if score > threshold]


def _binary(output: ClipOutput, inner: Size, size: Size) -> StudentPrediction:
    """Return the union of the masks (logit above 0) of the queries with an objectness above one half."""
    objectness = output.objectness.float().softmax(-1)[:, OBJECT]
    # A factor of at most one half adds no pixel to the union, but still ranks the pixels outside of it.
    factors = torch.where(objectness > 0.5, 1.0, objectness)
    maximum = torch.zeros(output.masks.shape[1], *size, device=objectness.device)
    for factor, masks in zip(factors, output.masks, strict=True):
        maximum = torch.maximum(maximum, factor * _resize_masks(masks, inner, size).sigmoid())
    probability = maximum.cpu().numpy()
    frames = []
    for frame in probability:
        mask = frame > 0.5
        frames.append((InstanceMask(mask, float(frame[mask].mean())),) if mask.any() else ())
    return StudentPrediction(tuple(frames), probability)


def _resize_masks(masks: Tensor, inner: Size, size: Size) -> Tensor:
    """Resize mask logits `[T, h, w]` to the padded frame, remove the padding, resize to the clip; as published."""
    padded = _padded(inner)
    full = F.interpolate(masks[:, None].float(), size=padded, mode="bilinear", align_corners=False)
    return resize_to_original(full, inner, padded, size)[:, 0]


def _padded(inner: Size) -> Size:
    """Return the frame size with sides rounded up to multiples of `STRIDE`."""
    return -(-inner[0] // STRIDE) * STRIDE, -(-inner[1] // STRIDE) * STRIDE


def _frames(batch: StudentBatch, row: int) -> Tensor:
    """Return the frames of a clip, uint8 `[n, 3, H, W]`, padded to multiples of `STRIDE` only."""
    height, width = _padded(batch.inner[row])
    return batch.frames[row, :, :, :height, :width][batch.present[row]]


def _pixels(batch: StudentBatch, row: int, padded: Size) -> Tensor:
    """Return the normalized frames with zeros in the padding: as published, padding follows normalization."""
    height, width = batch.inner[row]
    frames = normalize_images(_frames(batch, row)[..., :height, :width])
    return F.pad(frames, (0, padded[1] - width, 0, padded[0] - height))


def _target(batch: StudentBatch, row: int) -> MatcherTarget:
    """Return the objects of a clip: one per class of its labeled frames."""
    height, width = _padded(batch.inner[row])
    present = batch.present[row]
    frames = batch.labeled[row][present].nonzero()[:, 0]
    masks = batch.masks[row, :, :height, :width][present][frames]
    classes = [label for label in np.unique(masks.cpu().numpy()).tolist() if label]
    objects = torch.stack([masks == label for label in classes]) if classes else masks[None][:0]
    return MatcherTarget(objects.float(), frames, batch.weight[row][present][frames])


def _undecayed(network: nn.Module) -> set[str]:
    """Return the names of the parameters without weight decay."""
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.Embedding)
    names = {
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    }
    return names | {name for name, _ in network.named_parameters() if name.endswith("relative_position_bias_table")}
