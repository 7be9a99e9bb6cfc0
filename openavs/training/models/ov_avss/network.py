"""The OV-AVSS localiser: frames and their sound to the masks of whatever sounds, of any class.

It is transformers' Mask2Former with a time axis and the sound added. Inherited parameters keep their names, so that a
`Mask2FormerForUniversalSegmentation` checkpoint initializes it (`from_mask2former`).
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Mask2FormerForUniversalSegmentation, initialization as init
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPreTrainedModel

from openavs.errors import InputError
from openavs.models.hub import ResolvedModel, load_pretrained
from openavs.training.models.ov_avss.config import OvAvssConfig
from openavs.training.models.ov_avss.decoder import AudioAttention, AudioVisualTransformer, DecoderOutput
from openavs.training.models.ov_avss.pixel_decoder import GAIN, AudioVisualPixelLevel, EarlyFusion

logger = logging.getLogger(__name__)

STRIDE = 32
"""Sides of frames are multiples of this."""


class ClipOutput(NamedTuple):
    """What is where in one clip: `objectness` logits `[Q, 2]` (0 sounding object, 1 none), `masks` `[Q, T, h, w]`."""

    objectness: torch.Tensor
    masks: torch.Tensor


class AudioVisualMask2Former(nn.Module):
    """Backbone, pixel decoder and transformer, under the names that Mask2FormerModel gives them."""

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__()
        self.pixel_level_module = AudioVisualPixelLevel(config)
        self.transformer_module = AudioVisualTransformer(config)

    def forward(self, pixel_values: torch.Tensor, sound: torch.Tensor) -> list[DecoderOutput]:
        """`pixel_values` `[B, T, 3, H, W]` and `sound` `[B, T, a]`."""
        features = self.pixel_level_module(pixel_values.flatten(0, 1), sound.flatten(0, 1))
        said: list[DecoderOutput] = self.transformer_module(features, batch=len(pixel_values))
        return said


class OvAvssNetwork(Mask2FormerPreTrainedModel):  # type: ignore[misc]
    """The localiser with its class-agnostic head.

    >>> network = OvAvssNetwork(OvAvssConfig())  # doctest: +SKIP
    >>> objectness, masks = network(frames, sound)[0][-1]  # doctest: +SKIP
    """

    config_class = OvAvssConfig

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__(config)
        self.model = AudioVisualMask2Former(config)
        self.sound_predictor = nn.Linear(config.hidden_dim, 2)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, sound: torch.Tensor) -> list[list[ClipOutput]]:
        """For each clip, the answers of the queries before the first decoder layer and after each; the last one counts.

        Args:
            pixel_values: `[B, T, 3, H, W]`, normalised, zero-padded to multiples of 32; any B and T.
            sound: `[B, T, 128]`, the VGGish embedding of each frame's second.

        Raises:
            InputError: shapes that do not belong together.
        """
        _check_shapes(pixel_values, sound, self.config.audio_size)
        said = [(self.sound_predictor(layer.queries), layer.masks) for layer in self.model(pixel_values, sound)]
        return [[ClipOutput(head[clip], masks[clip]) for head, masks in said] for clip in range(len(pixel_values))]

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: of custom code transformers passes over modules without weights of their own, which is where Mask2Former
        and `_init_weights` settle those of whole layers."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As Mask2Former's; what is new as the published code has it: attention Xavier, plain layers torch's own."""
        if isinstance(module, (AudioAttention, EarlyFusion)):
            _xavier(module)
            return
        super()._init_weights(module)
        if isinstance(module, AudioVisualTransformer):
            for layer in module.audio_projection:
                _uniform(layer)
        elif isinstance(module, OvAvssNetwork):
            _uniform(module.sound_predictor)


def is_new(name: str) -> bool:
    """Whether Mask2Former has no parameter of this name."""
    return "audio_" in name or name.startswith("sound_predictor.")


def from_mask2former(found: ResolvedModel, **changes: Any) -> OvAvssNetwork:
    """A localiser that starts from a `Mask2FormerForUniversalSegmentation` checkpoint; what is new is random.

    Args:
        found: the checkpoint's folder.
        changes: entries of `OvAvssConfig` that Mask2Former has not, such as `audio_frames`.

    Raises:
        ModelError: not a whole checkpoint of that class.
    """
    donor = load_pretrained(Mask2FormerForUniversalSegmentation, found, torch.float32, "cpu")
    shared = donor.config.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        shared.pop(name, None)
    network = OvAvssNetwork(OvAvssConfig(**shared, **changes))
    report = network.load_state_dict(donor.state_dict(), strict=False)
    logger.info("%d tensors of %s were taken over, %d are new", len(network.state_dict()), found.ref, len(report[0]))
    return network


def _check_shapes(pixel_values: torch.Tensor, sound: torch.Tensor, size: int) -> None:
    shape = tuple(pixel_values.shape)
    if len(shape) != 5 or shape[2] != 3 or shape[3] % STRIDE or shape[4] % STRIDE:
        raise InputError(f"frames are [B, T, 3, H, W] with sides that are multiples of {STRIDE}, not {list(shape)}")
    if tuple(sound.shape) != (*shape[:2], size):
        raise InputError(
            f"{shape[1]} frames a clip need sound features [{shape[0]}, {shape[1]}, {size}], one row per frame, not "
            f"{list(sound.shape)}; is the sound shorter than the frames?"
        )


def _xavier(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("_gain"):
            init.constant_(parameter, GAIN)
        elif "norm" in name:
            init.constant_(parameter, float(name.endswith("weight")))
        elif parameter.ndim > 1:
            init.xavier_uniform_(parameter)
        else:
            init.zeros_(parameter)


def _uniform(layer: nn.Module) -> None:
    """As torch draws a linear layer."""
    if isinstance(layer, nn.Linear):
        bound = layer.in_features**-0.5
        init.uniform_(layer.weight, -bound, bound)
        init.uniform_(layer.bias, -bound, bound)
