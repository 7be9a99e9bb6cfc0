"""SAM 2 video (transformers Sam2VideoModel): carries masks from frame to frame by the model's own memory.

Each followed thing has a session of its own, so that things can come and go; the image features are shared. An image
is encoded once as long as it lives, whether it is segmented, carried through, or both. Sessions are made from tensors
(the library's video processor needs torchvision) and keep a bounded memory: SAM 2 looks at its last frames, at the
pointers of some more, and at the frames that were corrected by a find, of which the first and the latest stay.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from openavs.following import Rules, follow
from openavs.hub import load_pretrained, resolve
from openavs.segmenters.base import Sighting
from openavs.segmenters.sam2 import Encoding, Sam2Segmenter
from openavs.types import RLE, Image, InputError, OpenAVSError, mask_to_rle, rle_to_mask

_CORRECTED = 4  # frames with a find that a memory keeps: the first and the latest; SAM 2 was trained with so many
_NO_PIXELS = torch.empty(0)  # a session asks for a frame's pixels although its features are at hand


@dataclass(frozen=True)
class _Features:
    """What the video model needs of an image: levels `[h * w, 1, C]`, finest first, and the last one's positions."""

    levels: list[torch.Tensor]
    positions: torch.Tensor


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
        batch_size: int = 1,
        multimask: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if min(every, max_objects) < 1 or patience < 0 or not 0 < min_iou <= 1:
            raise InputError(
                "sam2-video: every and max_objects are at least 1, patience is not negative and min_iou is more than 0 "
                f"and at most 1, not {every}, {max_objects}, {patience}, {min_iou}"
            )
        super().__init__(
            model=model, batch_size=batch_size, multimask=multimask, device=device, dtype=dtype, offline=offline
        )
        self.every = every
        self.rules = Rules(min_iou, patience, max_objects)
        self.video: Any = load_pretrained(Sam2VideoModel, resolve(model, offline), torch.float32, self.device)
        self.video.vision_encoder = self.model.vision_encoder  # one copy of the largest part
        self._known: dict[int, tuple[weakref.ref[Image], _Features]] = {}

    def track(self, sightings: Iterable[Sighting]) -> Iterator[Sighting]:
        """See `Tracker.track`; what leaves is held back no longer than to the next key frame."""
        return follow(self, sightings, self.rules)

    # ------------------------------------------------------------------------------------------- following.Carrier

    @torch.inference_mode()
    def begin(self, at: int, image: Image, mask: RLE) -> Sam2VideoInferenceSession:
        """A session for one thing, told by a mask where it is."""
        session = Sam2VideoInferenceSession(
            video_height=int(image.shape[0]),
            video_width=int(image.shape[1]),
            inference_device=self.device,
            inference_state_device=self.device,
            video_storage_device=self.device,
            dtype=torch.float32,
        )
        session.obj_id_to_idx(0)
        self.correct(session, at, image, mask)
        return session

    @torch.inference_mode()
    def carry(
        self, memory: Sam2VideoInferenceSession, at: int, image: Image, backwards: bool = False
    ) -> tuple[RLE, float]:
        """Where the thing is in the next frame; the certainty is SAM 2's own that it is there at all."""
        logits, presence = self._show(memory, at, image, backwards)
        if not bool(torch.isfinite(logits).all() & torch.isfinite(presence).all()):
            raise OpenAVSError(
                f"the SAM 2 model '{self._ref}' gave mask logits that are not finite while tracking; try dtype "
                "float32, or another copy of the model"
            )
        [mask] = self.pixels.enlarge(logits[:, 0], (int(image.shape[0]), int(image.shape[1])))
        return mask_to_rle(mask), float(presence.flatten()[0].sigmoid())

    @torch.inference_mode()
    def correct(self, memory: Sam2VideoInferenceSession, at: int, image: Image, mask: RLE) -> None:
        """Makes a frame one of those that the memory rests on, with the mask that was found there."""
        # As SAM 2.1's own predictor does: what was carried to the frame is forgotten, and it conditions what follows.
        memory.output_dict_per_obj[0]["non_cond_frame_outputs"].pop(at, None)
        memory.frames_tracked_per_obj[0].pop(at, None)
        memory.add_mask_inputs(0, at, self.pixels.shrink(rle_to_mask(mask)))
        memory.obj_with_new_inputs = [0]
        self._show(memory, at, image, backwards=False)
        memory.remove_mask_inputs(0, at)

    def _show(
        self, session: Sam2VideoInferenceSession, at: int, image: Image, backwards: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the model on one frame: mask logits `[1, 1, h, w]` and the logit of the thing's presence."""
        [features] = self._features([image])
        seen = {"vision_feats": features.levels, "vision_pos_embeds": [features.positions]}
        session.cache.clear_all()
        session.cache.cache_vision_features(at, seen)
        answer = self.video(session, frame=_NO_PIXELS, frame_idx=at, reverse=backwards)
        self._tidy(session)
        return answer.pred_masks, answer.object_score_logits

    def _tidy(self, session: Sam2VideoInferenceSession) -> None:
        """Lets go of what no later frame looks at."""
        session.processed_frames.clear()
        session.cache.clear_all()
        outputs = session.output_dict_per_obj[0]
        recent = max(self.video.config.num_maskmem, self.video.config.max_object_pointers_in_encoder)
        _keep(outputs["non_cond_frame_outputs"], 0, recent)
        _keep(outputs["cond_frame_outputs"], 1, _CORRECTED - 1)
        _keep(session.frames_tracked_per_obj[0], 0, recent)
        for stored in (*outputs["non_cond_frame_outputs"].values(), *outputs["cond_frame_outputs"].values()):
            for name in ("pred_masks", "high_res_masks"):  # the memory holds them encoded
                stored.pop(name, None)

    # -------------------------------------------------------------------------------------------- one encoding each

    def _encode(self, images: Sequence[Image]) -> list[Encoding]:
        """What the image decoder needs: the same features, with the embedding that stands for 'no memory' added."""
        return [self._without_memory(features) for features in self._features(images)]

    def _without_memory(self, features: _Features) -> Encoding:
        levels = [*features.levels[:-1], features.levels[-1] + self.model.no_memory_embedding]
        sizes = self.model.backbone_feature_sizes
        return [level.permute(1, 2, 0).reshape(1, -1, *size) for level, size in zip(levels, sizes, strict=True)]

    def _features(self, images: Sequence[Image]) -> list[_Features]:
        """The features of some images, made in one pass for those that were not seen before."""
        new = [image for image in images if self._remembered(image) is None]
        if new:
            pixels = torch.stack([self.pixels.prepare(image) for image in new]).to(self.dtype)
            answer = self.video.get_image_features(pixels, return_dict=True)
            for i, image in enumerate(new):
                levels = [level[:, i : i + 1].float() for level in answer.fpn_hidden_states]
                self._remember(image, _Features(levels, answer.fpn_position_encoding[-1][:, :1].float()))
        found = [self._remembered(image) for image in images]
        return [features for features in found if features is not None]

    def _remembered(self, image: Image) -> _Features | None:
        known = self._known.get(id(image))
        return known[1] if known is not None and known[0]() is image else None

    def _remember(self, image: Image, features: _Features) -> None:
        """Keeps features for as long as the pipeline keeps their frame."""
        key = id(image)
        self._known[key] = (weakref.ref(image, lambda _: self._known.pop(key, None)), features)


def _keep(entries: dict[int, Any], first: int, last: int) -> None:
    """Leaves only the first and last so many entries of a dict, in the order they were made."""
    made = list(entries)
    for key in made[first : max(len(made) - last, first)]:
        del entries[key]
