"""SAM 3 video (transformers Sam3VideoModel): finds phrases at key frames and carries their masks between them.

The checkpoint holds SAM 3's detector and a tracker with SAM 2's memory, over one image encoder. The library's own loop
looks for every phrase in every frame and keeps all of a video; here `propagation.py` has the rules, as for
SAM 2: key frames, things that only sound now and then, bounded memory. An image is encoded once while it lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import Sam3VideoModel
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

from openavs.models.hub import ResolvedModel, load_pretrained
from openavs.stages.segmenters.sam3 import Sam3Segmenter
from openavs.stages.trackers.base import TrackedFrame
from openavs.stages.trackers.memory_bank import ImageFeatureCache, MemoryFeatures, MemoryPropagator
from openavs.stages.trackers.propagation import propagate_tracks, validate_tracker_options
from openavs.structures.types import ImageArray


class Sam3VideoTracker(Sam3Segmenter):
    """Tracks with SAM 3, and finds phrases where the recipe has neither detector nor segmenter.

    Args:
        model: reference of a Sam3VideoModel checkpoint.
        every: of the frames at which the same things sound, each so-manieth is looked at anew; see `key_frames`.
        min_iou: overlap from which a find is a thing that is followed already.
        patience: for how many key frames in a row a thing may be asked for and not found before it is let go.
        max_objects: things followed at once; each costs about 30 MB at full size.
        floor, max_candidates, batch_size: as for `sam3`.
        device, dtype, offline: as everywhere; dtype holds for the image encoder.
    """

    who = "sam3-video"

    def __init__(
        self,
        *,
        model: str,
        every: int = 8,
        min_iou: float = 0.5,
        patience: int = 2,
        max_objects: int = 32,
        floor: float = 0.2,
        max_candidates: int = 50,
        batch_size: int = 4,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        self.every, self.rules = validate_tracker_options(self.who, every, min_iou, patience, max_objects)
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
        self.carrier = MemoryPropagator(
            self.video.tracker_model, Sam3TrackerVideoInferenceSession, self._remembered, self.pixels, model
        )

    def _load(self, resolved: ResolvedModel) -> Any:
        self.video: Any = load_pretrained(Sam3VideoModel, resolved, torch.float32, self.device)
        return self.video.detector_model

    def track(self, sightings: Iterable[TrackedFrame]) -> Iterator[TrackedFrame]:
        """See `Tracker.track`; what leaves is held back no longer than to the next key frame."""
        return propagate_tracks(self.carrier, sightings, self.rules)

    def _encode(self, image: ImageArray) -> Any:
        return self._vision.get(image) or self._vision.put(image, super()._encode(image))

    def _remembered(self, image: ImageArray) -> MemoryFeatures:
        """What the tracker needs of an image, from the one encoding it shares with the detector."""
        known = self._features.get(image)
        if known is not None:
            return known
        levels, positions = self.video.get_vision_features_for_tracker(self._encode(image))
        return self._features.put(image, MemoryFeatures(levels, positions[-1]))
