"""The configuration of the OV-AVSS localiser: Mask2Former's own, with what the sound adds."""

from __future__ import annotations

from transformers import Mask2FormerConfig

AUDIO_SIZE = 128
"""Channels of a VGGish embedding."""


class OvAvssConfig(Mask2FormerConfig):  # type: ignore[misc]
    """Mask2Former's configuration and four more entries.

    Args:
        audio_size: channels of the sound's features, 128 for VGGish.
        audio_frames: positions that are learned along time; other numbers of frames interpolate between them.
        fusion_dropout: dropout of the early fusion's attention maps.
        freeze_batch_norm: a ResNet backbone keeps the statistics and scales of its batch norms, as in the paper. A
            backbone that is trained from random weights may be better off without.
    """

    model_type = "ov-avss"
    backbones_supported = ("swin", "resnet")

    audio_size: int = AUDIO_SIZE
    audio_frames: int = 5
    fusion_dropout: float = 0.1
    freeze_batch_norm: bool = True
