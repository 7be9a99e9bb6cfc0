"""SAM 3 video (transformers Sam3VideoModel): segments phrases in key frames and propagates their masks.

The checkpoint has SAM 3's detector and a tracker with SAM 2's memory bank, over one image encoder. The library's own
loop detects every phrase in every frame and stores all of a video; this adapter uses `propagation.py` instead, as
SAM 2 does: key frames, objects that sound only at times, bounded memory. An image is encoded once while it exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import Sam3VideoModel
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

from openavs.models.hub import ResolvedModel, load_pretrained
from openavs.stages.segmenters.sam3 import Sam3Segmenter
from openavs.stages.trackers.propagation import (
    ImageFeatureCache,
    MemoryFeatures,
    MemoryPropagator,
    propagate_tracks,
    validate_tracker_options,
)
from openavs.structures.types import ImageArray, TrackedFrame


class Sam3VideoTracker(Sam3Segmenter):
    """Tracks with SAM 3, and segments phrases if the recipe has neither detector nor segmenter.

    Args:
        model: reference of a Sam3VideoModel checkpoint.
        keyframe_interval: while the phrases stay the same, each n-th frame is a key frame (`association.key_frames`).
        min_iou: minimum IoU of a propagated mask and a segment of the same object.
        max_missed_keyframes: a track expires after more consecutive key frames in which it is not found.
        max_objects: maximum number of tracks at once; each takes about 30 MB at full size.
        floor, max_candidates, batch_size: as for `sam3`.
        device, dtype, offline: as everywhere; dtype holds for the image encoder.
    """

    name = "sam3-video"

    def __init__(
        self,
        *,
        model: str,
        keyframe_interval: int = 8,
        min_iou: float = 0.5,
        max_missed_keyframes: int = 2,
        max_objects: int = 32,
        floor: float = 0.2,
        max_candidates: int = 50,
        batch_size: int = 4,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        self.keyframe_interval = keyframe_interval
        self.config = validate_tracker_options(self.name, keyframe_interval, min_iou, max_missed_keyframes, max_objects)
        super().__init__(
            model=model,
            floor=floor,
            max_candidates=max_candidates,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            offline=offline,
        )
        self._vision: ImageFeatureCache[Any] = ImageFeatureCache()
        self._features: ImageFeatureCache[MemoryFeatures] = ImageFeatureCache()
        self.propagator = MemoryPropagator(
            self.video.tracker_model, Sam3TrackerVideoInferenceSession, self._memory_features, self.pixels, model
        )

    def _load(self, resolved: ResolvedModel) -> Any:
        self.video: Any = load_pretrained(Sam3VideoModel, resolved, torch.float32, self.device)
        return self.video.detector_model

    def track(self, frames: Iterable[TrackedFrame]) -> Iterator[TrackedFrame]:
        """See `Tracker.track`; frames are held back until the next key frame at most."""
        return propagate_tracks(self.propagator, frames, self.config)

    def _encode(self, image: ImageArray) -> Any:
        return self._vision.get(image) or self._vision.put(image, super()._encode(image))

    def _memory_features(self, image: ImageArray) -> MemoryFeatures:
        """Compute the tracker's features of an image from the encoding that it shares with the detector."""
        cached = self._features.get(image)
        if cached is not None:
            return cached
        levels, positions = self.video.get_vision_features_for_tracker(self._encode(image))
        return self._features.put(image, MemoryFeatures(levels, positions[-1]))
