"""SAM 2 video (transformers Sam2VideoModel): carries masks from key frame to key frame by the model's own memory.

An image is encoded once as long as it lives, whether it is segmented, carried through, or both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from openavs.models.hub import load_pretrained, resolve
from openavs.stages.segmenters.sam2 import Encoding, Sam2Segmenter
from openavs.stages.trackers.base import TrackedFrame
from openavs.stages.trackers.memory_bank import ImageFeatureCache, MemoryFeatures, MemoryPropagator
from openavs.stages.trackers.propagation import propagate_tracks, validate_tracker_options
from openavs.structures.types import ImageArray


class Sam2VideoTracker(Sam2Segmenter):
    """Tracks with SAM 2, and segments boxes with the same encodings where the recipe has no segmenter of its own.

    Args:
        model: reference of a Sam2VideoModel checkpoint (as SAM 2.1's on the hub).
        every: of the frames at which the same things sound, each so-manieth is looked at anew; see `key_frames`.
        min_iou: overlap from which a find is a thing that is followed already.
        patience: for how many key frames in a row a thing may be asked for and not found before it is let go.
        max_objects: things followed at once; each costs about 30 MB at full size.
        batch_size, multimask: as for `sam2`.
        device, dtype, offline: as everywhere; dtype holds for the image encoder.
    """

    def __init__(
        self,
        *,
        model: str,
        every: int = 8,
        min_iou: float = 0.5,
        patience: int = 2,
        max_objects: int = 32,
        batch_size: int | None = None,
        multimask: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        self.every, self.rules = validate_tracker_options("sam2-video", every, min_iou, patience, max_objects)
        super().__init__(
            model=model, batch_size=batch_size, multimask=multimask, device=device, dtype=dtype, offline=offline
        )
        self.video: Any = load_pretrained(Sam2VideoModel, resolve(model, offline), torch.float32, self.device)
        self.video.vision_encoder = self.model.vision_encoder  # one copy of the largest part
        self._known: ImageFeatureCache[MemoryFeatures] = ImageFeatureCache()
        self.carrier = MemoryPropagator(
            self.video, Sam2VideoInferenceSession, lambda image: self._features([image])[0], self.pixels, model
        )

    def track(self, sightings: Iterable[TrackedFrame]) -> Iterator[TrackedFrame]:
        """See `Tracker.track`; what leaves is held back no longer than to the next key frame."""
        return propagate_tracks(self.carrier, sightings, self.rules)

    # -------------------------------------------------------------------------------------------- one encoding each

    def _encode(self, images: Sequence[ImageArray]) -> list[Encoding]:
        """What the image decoder needs: the same features, with the embedding that stands for 'no memory' added."""
        return [self._without_memory(features) for features in self._features(images)]

    def _without_memory(self, features: MemoryFeatures) -> Encoding:
        levels = [*features.levels[:-1], features.levels[-1] + self.model.no_memory_embedding]
        sizes = self.model.backbone_feature_sizes
        return [level.permute(1, 2, 0).reshape(1, -1, *size) for level, size in zip(levels, sizes, strict=True)]

    def _features(self, images: Sequence[ImageArray]) -> list[MemoryFeatures]:
        """The features of some images, made in one pass for those that were not seen before."""
        new = [image for image in images if self._known.get(image) is None]
        made: dict[int, MemoryFeatures] = {}
        if new:
            pixels = torch.stack([self.pixels.prepare(image) for image in new]).to(self._takes)
            answer = self.video.get_image_features(pixels, return_dict=True)
            for i, image in enumerate(new):
                levels = [level[:, i : i + 1].float() for level in answer.fpn_hidden_states]
                features = MemoryFeatures(levels, answer.fpn_position_encoding[-1][:, :1].float())
                made[id(image)] = self._known.put(image, features)
        return [self._known.get(image) or made[id(image)] for image in images]
