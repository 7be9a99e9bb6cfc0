"""TPAVI, the baseline of AVSBench: every pixel looks at the sound of the whole clip, and a decoder paints the mask.

Zhou et al., "Audio-Visual Segmentation" (arXiv 2207.05042). Binary masks (S4, MS3) or one class per pixel (AVSS).
Any number of frames: a clip of ten is one clip, where the published AVSS code takes it for two of five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from openavs.errors import InputError
from openavs.evaluation.datasets.base import Task
from openavs.models.hub import resolve
from openavs.training.base import (
    AUDIO_SIZE,
    InstanceMask,
    Student,
    StudentBatch,
    StudentPrediction,
    TransformConfig,
    normalize_images,
    resize_to_original,
)
from openavs.training.models.backbones import backbone, make_backbone
from openavs.training.models.tpavi.layers import Decoder, FrameGroups, Interaction, Neck
from openavs.training.models.tpavi.losses import avm_loss, binary_loss, semantic_loss


@dataclass(frozen=True)
class TpaviConfig:
    """What it is built from.

    `backbone` is a name of `models/backbones.py`, `side` the length of the square picture in pixels, a multiple of 32.
    `classes` are the names of all classes, the background first; none for binary masks. `avm` is the weight of the AVM
    loss (published: 0 for S4, 0.5 otherwise), `drop_path` the share of a PVT's blocks left out in training. `crop`
    trains on centred squares instead of squeezed pictures, as AVSS does. `frames` of a clip are seen together: so many
    are drawn for a step, one of them labeled, and runs of as many are answered; none takes all of them, as published.
    With 1 every frame has its own second of sound alone, which clips need where sources start and stop.
    """

    backbone: str = "pvt_v2_b5"
    side: int = 224
    channels: int = 256
    inner: int = 128
    classes: tuple[str, ...] = ()
    avm: float = 0.0
    drop_path: float = 0.0
    crop: bool = False
    flip: bool = False
    frames: int | None = None


@dataclass(frozen=True, eq=False)
class TpaviOutput:
    """Of the M frames that are present, by stage the maps and the aligned audio; of the D that are `decoded`, bool
    `[M]`, logits `[D, classes, H, W]`."""

    logits: Tensor
    decoded: Tensor
    maps: list[Tensor]
    heard: list[Tensor]
    clips: FrameGroups


class Tpavi(Student):
    """The network, its losses and its answers; see `TpaviConfig`."""

    name = "tpavi"
    Config = TpaviConfig

    def __init__(self, config: TpaviConfig) -> None:
        super().__init__(config)
        if config.side % 32 or config.side <= 0:
            raise InputError(f"'model.side' must be a multiple of 32, not {config.side}")
        if config.frames is not None and config.frames < 1:
            raise InputError(f"'model.frames' is at least 1, not {config.frames}")
        if len(config.classes) == 1:
            raise InputError("'model.classes' names the background and at least one class, or nothing for binary masks")
        channels = backbone(config.backbone).channels
        self.backbone = make_backbone(config.backbone, config.drop_path)
        self.necks = nn.ModuleList(Neck(incoming, config.channels) for incoming in channels)
        audio_bias = not config.classes  # as published: AVSS's model has none
        self.interactions = nn.ModuleList(
            Interaction(config.channels, config.inner, AUDIO_SIZE, audio_bias) for _ in channels
        )
        self.decoder = Decoder(config.channels, max(1, len(config.classes)))

    @classmethod
    def adapt_config(cls, settings: dict[str, Any], task: Task, classes: Sequence[str]) -> dict[str, Any]:
        """The benchmark's classes as its own where the settings name none."""
        return settings if task == "binary" else {"classes": list(classes), **settings}

    def check(self, task: Task, classes: Sequence[str]) -> None:
        """Binary masks need a binary head, label maps the benchmark's classes in their order."""
        wanted = () if task == "binary" else tuple(classes)
        if self.config.classes != wanted:
            have = f"a head of {len(self.config.classes)} classes" if self.config.classes else "a binary head"
            need = f"one of its {len(wanted)} classes" if wanted else "a binary one"
            raise InputError(f"this TPAVI has {have} where the benchmark needs {need}; train another for it")

    def initialize(self, part: str, ref: str) -> None:
        """`backbone`: ImageNet weights of the same backbone; `student`: another TPAVI (MS3 from S4)."""
        if part != "backbone":
            return super().initialize(part, ref)
        from openavs.models.hub import load_pretrained

        fresh: Any = self.backbone
        loaded = load_pretrained(
            type(fresh), resolve(ref, self.offline), torch.float32, "cpu", out_features=list(fresh.out_features)
        )
        fresh.load_state_dict(loaded.state_dict())
        return None

    def view(self, training: bool) -> TransformConfig:
        """A square, of as many frames as the configuration says."""
        if not training:
            return TransformConfig((self.config.side,), frames=self.config.frames)
        fit: Literal["crop", "stretch"] = "crop" if self.config.crop else "stretch"
        return TransformConfig((self.config.side,), fit, flip=self.config.flip, frames=self.config.frames)

    def forward(self, batch: StudentBatch) -> TpaviOutput:
        clips = FrameGroups.of(batch.present)
        frames, audio = batch.frames[batch.present], batch.audio[batch.present]
        features = self.backbone(normalize_images(frames)).feature_maps
        maps, heard = [], []
        for stage, neck, interaction in zip(features, self.necks, self.interactions, strict=True):
            new, sound = interaction(neck(stage), audio, clips)
            maps.append(new)
            heard.append(sound)
        decoded = self._wanted(batch.labeled[batch.present])
        logits = self.decoder([stage[decoded] for stage in maps])
        return TpaviOutput(logits, decoded, maps, heard, clips)

    def _wanted(self, labeled: Tensor) -> Tensor:
        """Which frames are decoded: in training without AVM only those that teach, a fifth of them on S4. The decoder
        looks at each frame alone, so losses and gradients are the same."""
        sparse = self.training and not self.config.avm and bool(labeled.any())
        return labeled if sparse else torch.ones_like(labeled)

    def loss(self, output: TpaviOutput, batch: StudentBatch) -> dict[str, Tensor]:
        labeled = batch.labeled[batch.present][output.decoded]
        masks, weight = batch.masks[batch.labeled], batch.weight[batch.labeled]
        of_masks = semantic_loss if self.config.classes else binary_loss
        if len(masks):
            mask_loss = of_masks(output.logits[labeled], masks, weight)
        else:
            mask_loss = output.logits.sum() * 0.0  # a batch without a label teaches no masks
        if not self.config.avm:
            return {"loss": mask_loss}
        # In the published model the decoder's in-place ReLU has been applied to the maps at this point.
        maps = [stage.relu() for stage in output.maps]
        avm = avm_loss(output.logits, maps, output.heard, (batch.weight * batch.labeled)[batch.present])
        return {"loss": mask_loss + self.config.avm * avm, "mask": mask_loss, "avm": avm}

    @torch.no_grad()
    def predict(self, batch: StudentBatch, classes: Sequence[str] | None) -> list[StudentPrediction]:
        self.check("semantic" if classes else "binary", classes or ())
        output = self(batch)
        padded = (batch.frames.shape[-2], batch.frames.shape[-1])
        answers = []
        for clip, (inner, size) in enumerate(zip(batch.inner, batch.sizes, strict=True)):
            logits = output.logits[output.clips.index == clip].float()
            scores = logits.sigmoid() if classes is None else logits.softmax(dim=1)
            shares = resize_to_original(scores, inner, padded, size).cpu().numpy()
            answers.append(_binary(shares[:, 0]) if classes is None else _semantic(shares, classes))
        return answers


def _binary(probability: np.ndarray[Any, np.dtype[np.float32]]) -> StudentPrediction:
    frames = []
    for frame in probability:
        mask = frame > 0.5
        frames.append((InstanceMask(mask, float(frame[mask].mean())),) if mask.any() else ())
    return StudentPrediction(tuple(frames), probability)


def _semantic(shares: np.ndarray[Any, np.dtype[np.float32]], classes: Sequence[str]) -> StudentPrediction:
    """The best class of each pixel; a class's score in a frame is its mean probability where it is the best."""
    frames = []
    for frame in shares:
        best = frame.argmax(axis=0)
        present = [int(label) for label in np.unique(best) if label]
        frames.append(tuple(InstanceMask(best == c, float(frame[c][best == c].mean()), classes[c]) for c in present))
    return StudentPrediction(tuple(frames))
