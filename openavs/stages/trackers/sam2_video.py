"""SAM 2 and EdgeTAM video (transformers): propagates masks between key frames with the model's memory bank.

An image is encoded once while it exists, whether it is segmented, tracked, or both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from transformers import EdgeTamModel, EdgeTamVideoModel, Sam2VideoModel
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from openavs.models.hub import load_pretrained, resolve
from openavs.stages.segmenters.sam import Encoding, Sam2Segmenter
from openavs.stages.trackers.propagation import (
    ImageFeatureCache,
    MemoryFeatures,
    MemoryPropagator,
    propagate_tracks,
    validate_tracker_options,
)
from openavs.structures.types import ImageArray, TrackedFrame


class Sam2VideoTracker(Sam2Segmenter):
    """Tracks with SAM 2, and segments boxes from the same image features if the recipe has no segmenter.

    Args:
        model: reference of a Sam2VideoModel checkpoint, such as SAM 2.1's on the hub.
        keyframe_interval: while the phrases stay the same, each n-th frame is a key frame (`association.key_frames`).
        min_iou: minimum IoU of a propagated mask and a segment of the same object.
        max_missed_keyframes: a track expires after more consecutive key frames in which it is not found.
        max_objects: maximum number of tracks at once; each takes about 30 MB at full size.
        batch_size, multimask: as for `sam2`.
        device, dtype, offline: as everywhere; dtype holds for the image encoder.
    """

    name = "sam2-video"
    video_class: ClassVar[Any] = Sam2VideoModel
    session_class: ClassVar[Any] = Sam2VideoInferenceSession

    def __init__(
        self,
        *,
        model: str,
        keyframe_interval: int = 8,
        min_iou: float = 0.5,
        max_missed_keyframes: int = 2,
        max_objects: int = 32,
        batch_size: int | None = None,
        multimask: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        self.keyframe_interval = keyframe_interval
        self.config = validate_tracker_options(self.name, keyframe_interval, min_iou, max_missed_keyframes, max_objects)
        super().__init__(
            model=model, batch_size=batch_size, multimask=multimask, device=device, dtype=dtype, offline=offline
        )
        self.video: Any = load_pretrained(self.video_class, resolve(model, offline), torch.float32, self.device)
        self.video.vision_encoder = self.model.vision_encoder  # one copy of the largest part
        self._cache: ImageFeatureCache[MemoryFeatures] = ImageFeatureCache()
        self.propagator = MemoryPropagator(
            self.video, self.session_class, lambda image: self._features([image])[0], self.pixels, model
        )

    def track(self, frames: Iterable[TrackedFrame]) -> Iterator[TrackedFrame]:
        """See `Tracker.track`; frames are held back until the next key frame at most."""
        return propagate_tracks(self.propagator, frames, self.config)

    def _encode(self, images: Sequence[ImageArray]) -> list[Encoding]:
        """Encode images for the mask decoder: the same features, plus the embedding for "no memory"."""
        return [self._without_memory(features) for features in self._features(images)]

    def _without_memory(self, features: MemoryFeatures) -> Encoding:
        levels = [*features.levels[:-1], features.levels[-1] + self.model.no_memory_embedding]
        sizes = self.model.backbone_feature_sizes
        return [level.permute(1, 2, 0).reshape(1, -1, *size) for level, size in zip(levels, sizes, strict=True)]

    def _features(self, images: Sequence[ImageArray]) -> list[MemoryFeatures]:
        """Compute the features of images, in one pass for those that are not cached."""
        new = [image for image in images if self._cache.get(image) is None]
        computed: dict[int, MemoryFeatures] = {}
        if new:
            pixels = torch.stack([self.pixels.prepare(image) for image in new]).to(self._input_dtype)
            output = self.video.get_image_features(pixels, return_dict=True)
            for i, image in enumerate(new):
                levels = [level[:, i : i + 1].float() for level in output.fpn_hidden_states]
                features = MemoryFeatures(levels, output.fpn_position_encoding[-1][:, :1].float())
                computed[id(image)] = self._cache.put(image, features)
        return [self._cache.get(image) or computed[id(image)] for image in images]


class EdgeTamVideoTracker(Sam2VideoTracker):
    """Tracks with EdgeTAM, whose memory of a frame is a few hundred tokens; a reference of an EdgeTamVideoModel.

    The other options are those of `Sam2VideoTracker`.
    """

    name, title, needs_timm = "edgetam-video", "EdgeTAM", True
    model_class, video_class, session_class = EdgeTamModel, EdgeTamVideoModel, EdgeTamVideoInferenceSession
