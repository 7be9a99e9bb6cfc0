"""The OV-AVSS localizer: class-agnostic masks of the sounding objects of clips.

It is transformers' Mask2Former with a time axis and audio. Inherited parameters keep their names, so a
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
from openavs.training.models.ov_avss.decoder import (
    GAIN,
    AudioAttention,
    AudioVisualPixelLevel,
    AudioVisualTransformer,
    DecoderOutput,
    EarlyFusion,
)

logger = logging.getLogger(__name__)

STRIDE = 32
"""Sides of frames are multiples of this number of pixels."""


class ClipOutput(NamedTuple):
    """Logits of one clip: `objectness` `[Q, 2]` (0: sounding object, 1: no object) and `masks` `[Q, T, h, w]`."""

    objectness: torch.Tensor
    masks: torch.Tensor


class AudioVisualMask2Former(nn.Module):
    """Backbone, pixel decoder and transformer, with the names of Mask2FormerModel."""

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__()
        self.pixel_level_module = AudioVisualPixelLevel(config)
        self.transformer_module = AudioVisualTransformer(config)

    def forward(self, pixel_values: torch.Tensor, audio: torch.Tensor) -> list[DecoderOutput]:
        """Return the outputs of all layers for frames `[B, T, 3, H, W]` and audio features `[B, T, a]`."""
        features = self.pixel_level_module(pixel_values.flatten(0, 1), audio.flatten(0, 1))
        outputs: list[DecoderOutput] = self.transformer_module(features, batch=len(pixel_values))
        return outputs


class OvAvssNetwork(Mask2FormerPreTrainedModel):  # type: ignore[misc]
    """The localizer with its class-agnostic head.

    >>> network = OvAvssNetwork(OvAvssConfig())  # doctest: +SKIP
    >>> objectness, masks = network(frames, audio)[0][-1]  # doctest: +SKIP
    """

    config_class = OvAvssConfig

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__(config)
        self.model = AudioVisualMask2Former(config)
        self.sound_predictor = nn.Linear(config.hidden_dim, 2)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, audio: torch.Tensor) -> list[list[ClipOutput]]:
        """Return for each clip the outputs before the first decoder layer and after each; the last is the prediction.

        Args:
            pixel_values: `[B, T, 3, H, W]`, normalized, zero-padded to multiples of 32; any B and T.
            audio: `[B, T, 128]`, the VGGish embedding of each frame's second.

        Raises:
            InputError: the shapes are wrong or do not match.
        """
        _check_shapes(pixel_values, audio, self.config.audio_size)
        layers = [(self.sound_predictor(layer.queries), layer.masks) for layer in self.model(pixel_values, audio)]
        return [[ClipOutput(head[clip], masks[clip]) for head, masks in layers] for clip in range(len(pixel_values))]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False, so that transformers initializes this class like its own models."""
        # For custom code it skips modules without direct parameters, where `_init_weights` initializes whole layers.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize inherited modules as Mask2Former, new ones as published: attention Xavier, linear as torch."""
        if isinstance(module, (AudioAttention, EarlyFusion)):
            _init_xavier(module)
            return
        super()._init_weights(module)
        if isinstance(module, AudioVisualTransformer):
            for layer in module.audio_projection:
                _init_linear(layer)
        elif isinstance(module, OvAvssNetwork):
            _init_linear(module.sound_predictor)


def is_new(name: str) -> bool:
    """Return True for the name of a parameter that Mask2Former does not have."""
    return "audio_" in name or name.startswith("sound_predictor.")


def from_mask2former(found: ResolvedModel, **changes: Any) -> OvAvssNetwork:
    """Build a localizer from a `Mask2FormerForUniversalSegmentation` checkpoint; new parameters are random.

    If the checkpoint has one class, its head is the initial `sound_predictor`: at first every object sounds.

    Args:
        found: the folder of the checkpoint.
        **changes: entries of `OvAvssConfig` that Mask2Former does not have, such as `audio_frames`.

    Raises:
        ModelError: not a complete checkpoint of that class.
    """
    donor = load_pretrained(Mask2FormerForUniversalSegmentation, found, torch.float32, "cpu")
    shared = donor.config.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        shared.pop(name, None)
    network = OvAvssNetwork(OvAvssConfig(**shared, **changes))
    weights = donor.state_dict()
    if donor.config.num_labels == 1:  # both heads have the columns object and no object
        weights |= {f"sound_predictor.{name}": weights[f"class_predictor.{name}"] for name in ("weight", "bias")}
    report = network.load_state_dict(weights, strict=False)
    logger.info("loaded %s; %d of %d tensors are new", found.ref, len(report[0]), len(network.state_dict()))
    return network


def _check_shapes(pixel_values: torch.Tensor, audio: torch.Tensor, size: int) -> None:
    shape = tuple(pixel_values.shape)
    if len(shape) != 5 or shape[2] != 3 or shape[3] % STRIDE or shape[4] % STRIDE:
        raise InputError(f"frames are [B, T, 3, H, W] with sides that are multiples of {STRIDE}, not {list(shape)}")
    if tuple(audio.shape) != (*shape[:2], size):
        raise InputError(
            f"{shape[1]} frames a clip need audio features [{shape[0]}, {shape[1]}, {size}], one row per frame, not "
            f"{list(audio.shape)}; is the audio shorter than the frames?"
        )


def _init_xavier(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("_gain"):
            init.constant_(parameter, GAIN)
        elif "norm" in name:
            init.constant_(parameter, float(name.endswith("weight")))
        elif parameter.ndim > 1:
            init.xavier_uniform_(parameter)
        else:
            init.zeros_(parameter)


def _init_linear(layer: nn.Module) -> None:
    """Initialize a linear layer as torch does."""
    if isinstance(layer, nn.Linear):
        bound = layer.in_features**-0.5
        init.uniform_(layer.weight, -bound, bound)
        init.uniform_(layer.bias, -bound, bound)
