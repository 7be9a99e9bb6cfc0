"""Carrying masks from frame to frame by the memory of SAM 2, and of SAM 3's tracker, which has the same shape.

Each followed thing has a session of its own, so that things can come and go; the image features are shared. Sessions
are made from tensors (the library's video processors need torchvision) and keep a bounded memory: the model looks at
its last frames, at the pointers of some more, and at the frames that were corrected by a find, of which the first and
the latest stay.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from openavs.errors import InvalidOutputError
from openavs.stages.segmenters.preprocess import SquareResize
from openavs.structures.types import RLE, ImageArray, mask_to_rle, rle_to_mask

T = TypeVar("T")

_CORRECTED = 4  # frames with a find that a memory keeps: the first and the latest; SAM 2 was trained with so many


@dataclass(frozen=True)
class MemoryFeatures:
    """What the memory needs of an image: levels `[h * w, 1, C]`, finest first, and the last one's positions."""

    levels: list[torch.Tensor]
    positions: torch.Tensor


class MemoryPropagator:
    """`following.Carrier` over a SAM video model.

    Args:
        model: a Sam2VideoModel or Sam3TrackerVideoModel, in float32.
        session: the class of its sessions.
        features: gives the features of an image.
        pixels: the geometry of the model's square.
        ref: the model's reference, for the sentences of errors.
    """

    def __init__(
        self, model: Any, session: Any, features: Callable[[ImageArray], MemoryFeatures], pixels: SquareResize, ref: str
    ) -> None:
        self.model, self._session, self._features = model, session, features
        self._pixels, self._ref = pixels, ref
        self._no_pixels = torch.empty(0, device=pixels.device)  # a session takes a frame's pixels beside its features

    @torch.inference_mode()
    def begin(self, at: int, image: ImageArray, mask: RLE) -> Any:
        """A session for one thing, told by a mask where it is."""
        session = self._session(
            video_height=int(image.shape[0]),
            video_width=int(image.shape[1]),
            inference_device=self._pixels.device,
            inference_state_device=self._pixels.device,
            video_storage_device=self._pixels.device,
            dtype=torch.float32,
        )
        session.obj_id_to_idx(0)
        self.correct(session, at, image, mask)
        return session

    @torch.inference_mode()
    def carry(self, memory: Any, at: int, image: ImageArray, backwards: bool = False) -> tuple[RLE, float]:
        """Where the thing is in the next frame; the certainty is SAM 2's own that it is there at all."""
        logits, presence = self._show(memory, at, image, backwards)
        finite = torch.isfinite(logits).all() & torch.isfinite(presence).all()
        whole, certainty = torch.stack([finite.float(), presence.flatten()[0].sigmoid().float()]).tolist()
        if not whole:
            raise InvalidOutputError(
                f"the model '{self._ref}' gave mask logits that are not finite while tracking; try dtype "
                "float32, or another copy of the model"
            )
        [mask] = self._pixels.enlarge(logits[:, 0], (int(image.shape[0]), int(image.shape[1])))
        return mask_to_rle(mask), certainty

    @torch.inference_mode()
    def correct(self, memory: Any, at: int, image: ImageArray, mask: RLE) -> None:
        """Makes a frame one of those that the memory rests on, with the mask that was found there."""
        # As SAM 2.1's own predictor does: what was carried to the frame is forgotten, and it conditions what follows.
        memory.output_dict_per_obj[0]["non_cond_frame_outputs"].pop(at, None)
        memory.frames_tracked_per_obj[0].pop(at, None)
        memory.add_mask_inputs(0, at, self._pixels.shrink(rle_to_mask(mask)))
        memory.obj_with_new_inputs = [0]
        self._show(memory, at, image, backwards=False)
        memory.remove_mask_inputs(0, at)

    def _show(self, session: Any, at: int, image: ImageArray, backwards: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the model on one frame: mask logits `[1, 1, h, w]` and the logit of the thing's presence."""
        features = self._features(image)
        seen = {"vision_feats": features.levels, "vision_pos_embeds": [features.positions]}
        session.cache.clear_all()
        session.cache.cache_vision_features(at, seen)
        answer = self.model(session, frame=self._no_pixels, frame_idx=at, reverse=backwards)
        self._tidy(session)
        return answer.pred_masks, answer.object_score_logits

    def _tidy(self, session: Any) -> None:
        """Lets go of what no later frame looks at."""
        session.processed_frames.clear()
        session.cache.clear_all()
        outputs = session.output_dict_per_obj[0]
        recent = max(self.model.config.num_maskmem, self.model.config.max_object_pointers_in_encoder)
        _keep(outputs["non_cond_frame_outputs"], 0, recent)
        _keep(outputs["cond_frame_outputs"], 1, _CORRECTED - 1)
        _keep(session.frames_tracked_per_obj[0], 0, recent)
        for stored in (*outputs["non_cond_frame_outputs"].values(), *outputs["cond_frame_outputs"].values()):
            for name in ("pred_masks", "high_res_masks"):  # the memory holds them encoded
                stored.pop(name, None)


class ImageFeatureCache(Generic[T]):
    """Remembers something about images for as long as they live: the pipeline lets go of its frames soon."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[ImageArray], T]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, image: ImageArray) -> T | None:
        """What was put for this very image."""
        known = self._known.get(id(image))
        return known[1] if known is not None and known[0]() is image else None

    def put(self, image: ImageArray, what: T) -> T:
        """Remembers it, and gives it back."""
        key = id(image)
        self._known[key] = (weakref.ref(image, lambda _: self._known.pop(key, None)), what)
        return what


def _keep(entries: dict[int, Any], first: int, last: int) -> None:
    """Leaves only the first and last so many entries of a dict, in the order they were made."""
    made = list(entries)
    for key in made[first : max(len(made) - last, first)]:
        del entries[key]
