"""Mask propagation with the memory bank of SAM 2, and of SAM 3's tracker, which has the same structure.

Each track has its own inference session, so that objects can appear and disappear; the image features are shared.
Sessions are built from tensors, because the library's video processors need torchvision, and their memory is bounded:
the model attends to its last frames, to the object pointers of some more, and to the corrected frames, of which the
first and the latest are kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from openavs.errors import InvalidOutputError
from openavs.stages.segmenters.box_prompts import SquareResize
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask
from openavs.structures.types import ImageArray

T = TypeVar("T")

_MAX_CONDITIONING_FRAMES = 4  # the first and the latest with a given mask; SAM 2 was trained with as many


@dataclass(frozen=True)
class MemoryFeatures:
    """Image features for the memory: levels `[h * w, 1, C]`, finest first, and the positions of the last level."""

    levels: list[torch.Tensor]
    positions: torch.Tensor


class MemoryPropagator:
    """`propagation.MaskPropagator` over a SAM video model.

    Args:
        model: a Sam2VideoModel or Sam3TrackerVideoModel, in float32.
        session: the class of its sessions.
        features: computes the features of an image.
        pixels: pre- and post-processing of the model's square images.
        ref: the model's reference, for errors.
    """

    def __init__(
        self, model: Any, session: Any, features: Callable[[ImageArray], MemoryFeatures], pixels: SquareResize, ref: str
    ) -> None:
        self.model, self._session, self._features = model, session, features
        self._pixels, self._ref = pixels, ref
        self._no_pixels = torch.empty(0, device=pixels.device)  # the features of a frame are cached in the session

    @torch.inference_mode()
    def init_track(self, step: int, image: ImageArray, mask: RLE) -> Any:
        """Create a session for the object under a mask."""
        session = self._session(
            video_height=int(image.shape[0]),
            video_width=int(image.shape[1]),
            inference_device=self._pixels.device,
            inference_state_device=self._pixels.device,
            video_storage_device=self._pixels.device,
            dtype=torch.float32,
        )
        session.obj_id_to_idx(0)
        self.correct(session, step, image, mask)
        return session

    @torch.inference_mode()
    def propagate(self, memory: Any, step: int, image: ImageArray, backward: bool = False) -> tuple[RLE, float]:
        """Return the object's mask in the next frame and the model's probability that it is present.

        Raises:
            InvalidOutputError: the mask logits are not finite.
        """
        logits, presence = self._run(memory, step, image, backward)
        finite = torch.isfinite(logits).all() & torch.isfinite(presence).all()
        is_finite, score = torch.stack([finite.float(), presence.flatten()[0].sigmoid().float()]).tolist()
        if not is_finite:
            raise InvalidOutputError(
                f"the model '{self._ref}' returned mask logits that are not finite while tracking; try dtype=float32, "
                "or another copy of the model"
            )
        [mask] = self._pixels.enlarge(logits[:, 0], (int(image.shape[0]), int(image.shape[1])))
        return mask_to_rle(mask), score

    @torch.inference_mode()
    def correct(self, memory: Any, step: int, image: ImageArray, mask: RLE) -> None:
        """Make a frame a conditioning frame of the session, with the mask that was found there."""
        # As SAM 2.1's own predictor does: the propagated output of the frame is dropped, and the mask conditions all
        # later frames.
        memory.output_dict_per_obj[0]["non_cond_frame_outputs"].pop(step, None)
        memory.frames_tracked_per_obj[0].pop(step, None)
        memory.add_mask_inputs(0, step, self._pixels.shrink(rle_to_mask(mask)))
        memory.obj_with_new_inputs = [0]
        self._run(memory, step, image, backward=False)
        memory.remove_mask_inputs(0, step)

    def _run(self, session: Any, step: int, image: ImageArray, backward: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model on one frame: mask logits `[1, 1, h, w]` and the logit of the object's presence."""
        features = self._features(image)
        vision = {"vision_feats": features.levels, "vision_pos_embeds": [features.positions]}
        session.cache.clear_all()
        session.cache.cache_vision_features(step, vision)
        output = self.model(session, frame=self._no_pixels, frame_idx=step, reverse=backward)
        self._trim(session)
        return output.pred_masks, output.object_score_logits

    def _trim(self, session: Any) -> None:
        """Drop everything from a session that no later frame attends to."""
        session.processed_frames.clear()
        session.cache.clear_all()
        outputs = session.output_dict_per_obj[0]
        recent = max(self.model.config.num_maskmem, self.model.config.max_object_pointers_in_encoder)
        _keep_ends(outputs["non_cond_frame_outputs"], 0, recent)
        _keep_ends(outputs["cond_frame_outputs"], 1, _MAX_CONDITIONING_FRAMES - 1)
        _keep_ends(session.frames_tracked_per_obj[0], 0, recent)
        for stored in (*outputs["non_cond_frame_outputs"].values(), *outputs["cond_frame_outputs"].values()):
            for name in ("pred_masks", "high_res_masks"):  # the memory features already encode them
                stored.pop(name, None)


class ImageFeatureCache(Generic[T]):
    """Caches values per image object for as long as the image exists; the pipeline drops its frames soon."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[ImageArray], T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, image: ImageArray) -> T | None:
        """Return the value of this array object."""
        entry = self._entries.get(id(image))
        return entry[1] if entry is not None and entry[0]() is image else None

    def put(self, image: ImageArray, value: T) -> T:
        """Store a value for an image, and return it."""
        key = id(image)
        self._entries[key] = (weakref.ref(image, lambda _: self._entries.pop(key, None)), value)
        return value


def _keep_ends(entries: dict[int, Any], first: int, last: int) -> None:
    """Keep only the `first` oldest and `last` newest entries of a dict."""
    keys = list(entries)
    for key in keys[first : max(len(keys) - last, first)]:
        del entries[key]
