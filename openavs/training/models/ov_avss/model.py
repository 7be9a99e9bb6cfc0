"""OV-AVSS, the open-vocabulary student: masks of whatever sounds, of any class, and CLIP to name them.

"Open-Vocabulary Audio-Visual Semantic Segmentation" (arXiv 2407.21721), written after a description of the published
code. The localiser learns where something sounds and never which class it is, so it takes any vocabulary at run time.
Differences: clips of a batch do not mix (the published decoder is right for one clip at a time only), any number of
frames, and the sound's features come from a cache.
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
from openavs.training.models.ov_avss.criterion import localiser_loss
from openavs.training.models.ov_avss.matcher import OBJECT, MatcherTarget
from openavs.training.models.ov_avss.network import STRIDE, ClipOutput, OvAvssNetwork, from_mask2former

BACKGROUND = "background"
NO_CLIP = (
    "this ov-avss has no CLIP to name masks with; give model.clip=FOLDER to the training, or set 'clip' in the "
    "student's config.json"
)
Output = list[list[ClipOutput]]
"""For each clip, the answers of each layer; the last one counts."""


class OvAvss(Student):
    """The localiser, its loss, and its answers in binary masks or in the words of a vocabulary."""

    name = "ov-avss"
    Config = OvAvssStudentConfig

    def __init__(self, config: OvAvssStudentConfig) -> None:
        super().__init__(config)
        self.network = OvAvssNetwork(config.network())
        self._classifier: MaskClassifier | None = None

    def check(self, task: Task, classes: Sequence[str]) -> None:
        """It learns from the masks of any benchmark; to be scored on label maps it has to name them."""
        if task != "binary" and self.config.clip is None:
            raise InputError(NO_CLIP)

    def prepare(self, task: Task) -> None:
        """The CLIP that names masks, where names are asked for."""
        if task != "binary" and self.config.clip is not None:
            resolve(self.config.clip, self.offline)

    def view(self, training: bool) -> TransformConfig:
        """The whole picture by its short side; in training of several lengths, mirrored or not."""
        sides = self.config.sides if training else (self.config.test_side,)
        return TransformConfig(sides, "keep", multiple=STRIDE, flip=training, frames=self.config.frames)

    def initialize(self, part: str, ref: str) -> None:
        """`mask2former`: a Mask2FormerForUniversalSegmentation of the same sizes; `backbone`: ImageNet weights."""
        if part == "mask2former":
            donor = from_mask2former(resolve(ref, self.offline), audio_frames=self.config.frames)
            if left := take_matching(self.network, donor.state_dict(), ref):
                raise ModelError(
                    f"the Mask2Former '{ref}' is of other sizes than this student ({len(left)} tensors, such as "
                    f"{left[0]}); set its 'model.backbone', 'model.queries' and other sizes to the checkpoint's"
                )
        elif part == "backbone":
            self._start_backbone(ref)
        else:
            super().initialize(part, ref)

    def _start_backbone(self, ref: str) -> None:
        from openavs.models.hub import load_pretrained

        fresh: Any = self.network.model.pixel_level_module.encoder
        found = resolve(ref, self.offline)
        loaded = load_pretrained(type(fresh), found, torch.float32, "cpu", out_features=list(fresh.out_features))
        if left := take_matching(fresh, loaded.state_dict(), ref):
            raise ModelError(
                f"the backbone '{ref}' is no {self.config.backbone} ({left[0]} does not fit); name its own"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The backbone learns at a tenth of the rate; norms, embeddings and position tables do not decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        bare = _not_decayed(self.network)
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                key = (name.startswith("model.pixel_level_module.encoder."), name in bare)
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": held, "scale": 0.1 if slow else 1.0, **({"weight_decay": 0.0} if free else {})}
            for (slow, free), held in groups.items()
        ]

    def forward(self, batch: StudentBatch) -> Output:
        """Clips of one length and size go through together: nothing of a clip depends on what it is padded against."""
        shapes = [(int(n), *_padded(inner)) for n, inner in zip(batch.present.sum(1), batch.inner, strict=True)]
        answers: dict[int, list[ClipOutput]] = {}
        for shape in dict.fromkeys(shapes):
            rows = [i for i, other in enumerate(shapes) if other == shape]
            pixels = torch.stack([_pixels(batch, row, shape[1:]) for row in rows])
            sound = torch.stack([batch.audio[row][batch.present[row]] for row in rows])
            answers |= dict(zip(rows, self.network(pixels, sound), strict=True))
        return [answers[row] for row in range(len(shapes))]

    def loss(self, output: Output, batch: StudentBatch) -> dict[str, Tensor]:
        """See `localiser_loss`. A clip without a labeled frame teaches nothing; all objects are of one class."""
        labeled = (batch.labeled & batch.present).any(1).tolist()
        rows = [row for row, known in enumerate(labeled) if known]
        if not rows:
            nothing = torch.stack([answer.masks.sum() for own in output for answer in own]).sum() * 0.0
            return {"loss": nothing, **dict.fromkeys(("objectness", "mask", "dice"), nothing.detach())}
        targets = [_target(batch, row) for row in rows]
        return localiser_loss([output[row] for row in rows], targets, self.config.weights())

    @torch.no_grad()
    def predict(self, batch: StudentBatch, classes: Sequence[str] | None) -> list[StudentPrediction]:
        """Binary: the union of the queries that are sounding objects. Else `MaskClassifier` names the queries.

        Raises:
            InputError: names are asked for and the student has no CLIP.
        """
        names = [name for name in classes or () if name != BACKGROUND]
        clips = zip(self(batch), batch.inner, batch.sizes, strict=True)
        if classes is None:
            return [_binary(own[-1], inner, size) for own, inner, size in clips]
        return [self.named(batch, row, own[-1], names) for row, (own, _, _) in enumerate(clips)]

    @torch.no_grad()
    def named(self, batch: StudentBatch, row: int, answer: ClipOutput, names: Sequence[str]) -> StudentPrediction:
        """What an answer to clip `row` shows, in the words of a vocabulary: the best pairs of query and class."""
        inner, size = batch.inner[row], batch.sizes[row]
        sure = answer.objectness.float().softmax(-1)[:, OBJECT] >= (self.config.objectness or 0.0)
        asked = sure.nonzero()[:, 0]
        chances = self._names(batch.frames.device).classify(_frames(batch, row), answer.masks[asked], names)
        frames: list[list[InstanceMask]] = [[] for _ in range(answer.masks.shape[1])]
        for place, label, score in best_pairs(chances, self.config.top, self.config.threshold):
            query = int(asked[place])
            for found, logits in zip(frames, _own_size(answer.masks[query], inner, size), strict=True):
                if (mask := logits > 0).any():
                    found.append(InstanceMask(mask.cpu().numpy(), score, names[label], query))
        return StudentPrediction(tuple(map(tuple, frames)))

    def _names(self, device: torch.device) -> MaskClassifier:
        """The classifier, loaded when first asked for; it is no part of the student's own weights."""
        if self.config.clip is None:
            raise InputError(NO_CLIP)
        if self._classifier is None or self._classifier.device != device:
            self._classifier = MaskClassifier(
                self.config.clip,
                device,
                batch_size=self.config.crop_batch,
                centred=self.config.crops == "centred",
                hard=self.config.edges == "hard",
                offline=self.offline,
            )
        return self._classifier


def best_pairs(chances: Tensor, top: int, threshold: float) -> list[tuple[int, int, float]]:
    """The `top` best (query, class, probability) of `[Q, classes]` that are above the threshold, best first.

    A query may be among them with two classes.
    """
    flat = chances.float().flatten()
    best = flat.topk(min(top, len(flat)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(*divmod(place, chances.shape[1]), score) for place, score in pairs if score > threshold]


def _binary(answer: ClipOutput, inner: Size, size: Size) -> StudentPrediction:
    """The union of the sure queries' masks, which are cut at a logit of 0 as those of a label map are.

    A query with an objectness of one half or less adds no pixel to it, but grades those outside.
    """
    chances = answer.objectness.float().softmax(-1)[:, OBJECT]
    trust = torch.where(chances > 0.5, 1.0, chances)
    likeliest = torch.zeros(answer.masks.shape[1], *size, device=chances.device)
    for share, masks in zip(trust, answer.masks, strict=True):
        likeliest = torch.maximum(likeliest, share * _own_size(masks, inner, size).sigmoid())
    probability = likeliest.cpu().numpy()
    frames = []
    for frame in probability:
        mask = frame > 0.5
        frames.append((InstanceMask(mask, float(frame[mask].mean())),) if mask.any() else ())
    return StudentPrediction(tuple(frames), probability)


def _own_size(masks: Tensor, inner: Size, size: Size) -> Tensor:
    """Mask logits `[T, h, w]` at the clip's size: scaled to the padded picture, cut, scaled again, as published."""
    padded = _padded(inner)
    full = F.interpolate(masks[:, None].float(), size=padded, mode="bilinear", align_corners=False)
    return resize_to_original(full, inner, padded, size)[:, 0]


def _padded(inner: Size) -> Size:
    """A picture's size with its sides rounded up to what the network takes."""
    return -(-inner[0] // STRIDE) * STRIDE, -(-inner[1] // STRIDE) * STRIDE


def _frames(batch: StudentBatch, row: int) -> Tensor:
    """A clip's own frames, uint8 `[n, 3, H, W]`, padded no further than it needs."""
    height, width = _padded(batch.inner[row])
    return batch.frames[row, :, :, :height, :width][batch.present[row]]


def _pixels(batch: StudentBatch, row: int, padded: Size) -> Tensor:
    """The same, normalised, with zeros in the padding (as the published loader: it pads after it normalises)."""
    height, width = batch.inner[row]
    frames = normalize_images(_frames(batch, row)[..., :height, :width])
    return F.pad(frames, (0, padded[1] - width, 0, padded[0] - height))


def _target(batch: StudentBatch, row: int) -> MatcherTarget:
    """One object per class of the clip's labeled frames."""
    height, width = _padded(batch.inner[row])
    present = batch.present[row]
    frames = batch.labeled[row][present].nonzero()[:, 0]
    masks = batch.masks[row, :, :height, :width][present][frames]
    kinds = [kind for kind in np.unique(masks.cpu().numpy()).tolist() if kind]
    objects = torch.stack([masks == kind for kind in kinds]) if kinds else masks[None][:0]
    return MatcherTarget(objects.float(), frames, batch.weight[row][present][frames])


def _not_decayed(network: nn.Module) -> set[str]:
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.Embedding)
    names = {
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    }
    return names | {name for name, _ in network.named_parameters() if name.endswith("relative_position_bias_table")}
