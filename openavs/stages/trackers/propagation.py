"""Tracking with a model that propagates masks from frame to frame, such as SAM 2 video.

Key frames come with their segments; between them every track is propagated. At a key frame the propagated masks are
matched with the segments: a matched track is corrected with its segment, a segment without a match starts a track,
which is also propagated back to the previous key frame, and a track that is missed in several key frames expires.
Frames are held back until the next key frame at most.

`MemoryPropagator` is such a model, with the memory bank of SAM 2, or of SAM 3's tracker, which has the same structure.
Each track has its own inference session, so that objects can appear and disappear; the image features are shared.
Sessions are built from tensors, because the library's video processors need torchvision, and their memory is bounded:
the model attends to its last frames, to the object pointers of some more, and to the corrected frames, of which the
first and the latest are kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from openavs.errors import InputError, InvalidOutputError
from openavs.stages.segmenters.box_prompts import SquareResize
from openavs.stages.trackers.base import remaining_rejections
from openavs.stages.trackers.iou import match_tracks
from openavs.structures.association import IouMatrix
from openavs.structures.masks import RLE, mask_to_rle, rle_iou, rle_to_mask
from openavs.structures.types import ImageArray, Rejection, Segment, TrackedFrame


@dataclass(frozen=True)
class TrackerConfig:
    """Rules of `propagate_tracks`.

    Attributes:
        min_iou: minimum IoU of a propagated mask and a segment of the same object.
        max_missed_keyframes: a track expires after more consecutive key frames in which its phrase sounds and no
            segment matches it.
        max_objects: maximum number of tracks that are propagated at once.
        min_area: minimum area of a reported mask, in pixels.
    """

    min_iou: float = 0.5
    max_missed_keyframes: int = 2
    max_objects: int = 32
    min_area: int = 1


def validate_tracker_options(
    name: str, keyframe_interval: int, min_iou: float, max_missed_keyframes: int, max_objects: int
) -> TrackerConfig:
    """Check the options that video trackers share; `name` is the tracker's, for errors.

    Raises:
        InputError: an option is out of range.
    """
    if min(keyframe_interval, max_objects) < 1 or max_missed_keyframes < 0 or not 0 < min_iou <= 1:
        raise InputError(
            f"{name}: keyframe_interval and max_objects must be at least 1, max_missed_keyframes at least 0, and "
            f"min_iou more than 0 and at most 1, not {keyframe_interval}, {max_objects}, {max_missed_keyframes}, "
            f"{min_iou}"
        )
    return TrackerConfig(min_iou, max_missed_keyframes, max_objects)


@dataclass(eq=False)
class _Track:
    """One tracked object: its id, its last segment of each phrase, and the propagator's memory of it."""

    id: int
    by_phrase: dict[str, Segment]
    memory: Any
    last_found: int
    missed: int = 0

    def propagated(self, mask: RLE, presence: float, phrases: Sequence[str]) -> Segment | None:
        """Return the object's segment with a propagated mask, under its latest phrase among those of the frame."""
        phrase = next((p for p in reversed(self.by_phrase) if p in phrases), None)
        if phrase is None:
            return None
        return replace(self.by_phrase[phrase], mask=mask, box=mask.box, mask_score=presence, track=self.id)

    def add(self, segment: Segment, step: int) -> Segment:
        """Record a segment that was found for this object, and return it with the track's id."""
        tracked = replace(segment, track=self.id)
        self.by_phrase.pop(segment.phrase, None)  # the latest phrase is last
        self.by_phrase[segment.phrase] = tracked
        self.last_found, self.missed = step, 0
        return tracked


_Propagated = dict[_Track, tuple[RLE, float]]
"""Mask and presence score of each track in one frame."""


def propagate_tracks(
    propagator: MemoryPropagator, frames: Iterable[TrackedFrame], config: TrackerConfig
) -> Iterator[TrackedFrame]:
    """Track the objects of one clip; see `Tracker.track`."""
    tracks = _TrackManager(propagator, config)
    window: list[TrackedFrame] = []
    for frame in frames:
        window.append(frame)
        if frame.key:
            yield from tracks.process(window)
            window = []
    yield from tracks.process(window)


class _TrackManager:
    """The tracks of one clip."""

    def __init__(self, propagator: MemoryPropagator, config: TrackerConfig) -> None:
        self.propagator, self.config = propagator, config
        self.tracks: list[_Track] = []
        self.next_id = 0
        self.step = 0

    def process(self, window: Sequence[TrackedFrame]) -> Iterator[TrackedFrame]:
        """Track a window of frames, of which only the last may be a key frame."""
        start = self.step
        tracked: list[list[Segment]] = []
        for frame in window:
            image = frame.frame.image
            propagated = {t: self.propagator.propagate(t.memory, self.step, image) for t in self.tracks}
            if frame.key:
                segments, started = self._update_keyframe(frame, propagated)
                tracked.append(segments)
                for track in started:
                    self._propagate_back(track, window, tracked, start)
            else:
                tracked.append(self._visible(propagated, frame))
            self.step += 1
        for frame, segments in zip(window, tracked, strict=True):
            ordered = tuple(sorted(segments, key=lambda s: -s.score))
            yield replace(frame, segments=ordered, rejected=_rejections(frame, ordered))

    def _visible(self, propagated: _Propagated, frame: TrackedFrame) -> list[Segment]:
        """Return the propagated segments that are large enough and have a phrase of the frame."""
        visible = [(t, mask, score) for t, (mask, score) in propagated.items() if mask.area >= self.config.min_area]
        segments = [track.propagated(mask, score, frame.phrases) for track, mask, score in visible]
        return [segment for segment in segments if segment is not None]

    def _update_keyframe(self, frame: TrackedFrame, propagated: _Propagated) -> tuple[list[Segment], list[_Track]]:
        """Match a key frame's segments with the tracks; returns its segments with tracks, and the new tracks.

        Tracks without a match are among the segments where they are still visible.
        """
        tracks = list(propagated)
        iou = rle_iou([mask for mask, _ in propagated.values()], [segment.mask for segment in frame.segments])
        same = np.array([[s.phrase in track.by_phrase for s in frame.segments] for track in tracks], dtype=np.bool_)
        matches = match_tracks(iou, same.reshape(iou.shape), self.config.min_iou)
        segments, started = [], []
        for segment, match in zip(frame.segments, matches, strict=True):
            if match is None:
                track = self._start_track(segment, frame)
                started.append(track)
            else:
                track = tracks[match]
                self.propagator.correct(track.memory, self.step, frame.frame.image, segment.mask)
            segments.append(track.add(segment, self.step))
        missed = [i for i in range(len(tracks)) if i not in matches]
        # A propagated mask that a segment covers is the same object, found under another phrase.
        uncovered = {tracks[i]: propagated[tracks[i]] for i in missed if not _is_covered(iou[i], self.config)}
        segments += self._visible(uncovered, frame)
        self._expire_tracks([tracks[i] for i in missed], frame)
        return segments, started

    def _start_track(self, segment: Segment, frame: TrackedFrame) -> _Track:
        """Start a track; if there are too many, the one that was found least recently is dropped."""
        if len(self.tracks) >= self.config.max_objects:
            self.tracks.remove(min(self.tracks, key=lambda track: track.last_found))
        memory = self.propagator.init_track(self.step, frame.frame.image, segment.mask)
        track = _Track(self.next_id, {}, memory, self.step)
        self.next_id += 1
        self.tracks.append(track)
        return track

    def _expire_tracks(self, missed: Iterable[_Track], frame: TrackedFrame) -> None:
        """Count the key frames in which a track's phrase sounds and it is not found; drop those missed too often."""
        for track in missed:
            if any(phrase in track.by_phrase for phrase in frame.phrases):
                track.missed += 1
        self.tracks = [track for track in self.tracks if track.missed <= self.config.max_missed_keyframes]

    def _propagate_back(
        self, track: _Track, window: Sequence[TrackedFrame], tracked: list[list[Segment]], start: int
    ) -> None:
        """Add a new track to the frames before its key frame, as far back as it is visible and not another track."""
        key = len(tracked) - 1
        [found] = track.by_phrase.values()
        if not any(found.phrase in frame.phrases for frame in window[:key]):
            return
        memory = self.propagator.init_track(start + key, window[key].frame.image, found.mask)
        for i in range(key - 1, -1, -1):
            if window[i].frame.index + 1 != window[i + 1].frame.index:
                return  # silent frames are between the two
            mask, presence = self.propagator.propagate(memory, start + i, window[i].frame.image, backward=True)
            iou = rle_iou([mask], [segment.mask for segment in tracked[i]])
            if mask.area < self.config.min_area or _is_covered(iou[0], self.config):
                return
            segment = track.propagated(mask, presence, window[i].phrases)
            if segment is not None:
                tracked[i].append(segment)


def _is_covered(iou: IouMatrix, config: TrackerConfig) -> bool:
    """Return whether a mask is the same as one of those it was compared with."""
    return bool((iou >= config.min_iou).any())


def _rejections(frame: TrackedFrame, segments: Sequence[Segment]) -> tuple[Rejection, ...]:
    """Explain missing phrases: by the detector's reasons at a key frame, elsewhere as not tracked."""
    if frame.key:
        return remaining_rejections(frame.rejected, segments)
    tracked = {segment.phrase for segment in segments}
    return tuple(Rejection(phrase, "not tracked") for phrase in frame.phrases if phrase not in tracked)


T = TypeVar("T")

_MAX_CONDITIONING_FRAMES = 4  # the first and the latest with a given mask; SAM 2 was trained with as many


@dataclass(frozen=True)
class MemoryFeatures:
    """Image features for the memory: levels `[h * w, 1, C]`, finest first, and the positions of the last level."""

    levels: list[torch.Tensor]
    positions: torch.Tensor


class MemoryPropagator:
    """Propagates one mask through frames with a SAM video model. A memory is a session of the model.

    `step` counts the frames that were passed to the model. A memory is used for neighboring steps only, forward or
    (from its first frame) backward. An object that is hidden or gone has an empty mask.

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
