"""Every adapter with a network, at tiny size with random weights, and an input for each.

Used by the tests on a simulated and on a real GPU, and by `scripts/first_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from openavs.stages.captioners.audio_lm import AudioLmCaptioner
from openavs.stages.captioners.audio_tagger import AudioTaggerCaptioner
from openavs.stages.captioners.clap import ClapCaptioner
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.stages.detectors.omdet_turbo import OmDetTurboDetector
from openavs.stages.detectors.owlv2 import Owlv2Detector
from openavs.stages.segmenters.sam import Sam2Segmenter, SamHqSegmenter, SamSegmenter
from openavs.stages.segmenters.sam3 import Sam3LiteTextSegmenter, Sam3Segmenter
from openavs.stages.trackers.sam2_video import Sam2VideoTracker
from openavs.stages.trackers.sam3_video import Sam3VideoTracker
from openavs.stages.translators.base import Request
from openavs.stages.translators.frame_pictures import frame_pictures
from openavs.stages.translators.llm import LlmTranslator, VlmTranslator
from openavs.stages.verifiers.clip import ClipVerifier
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask
from openavs.structures.types import AudioWindow, Caption, Clip, Frame, ImageArray, Segment, TrackedFrame, Waveform
from tests import tiny_audio, tiny_detectors, tiny_lms, tiny_models, tiny_sams
from tests.stages.verifiers.tiny_clip import make_clip

FRAMES = 5
SIZE = (90, 130)
BOXES = [(10.0, 12.0, 60.0, 70.0), (40.0, 5.0, 120.0, 80.0)]
PHRASES = ["dog", "red car"]

Answer = list[float | str]
"""Scores, shares of pixels and texts, in the order of the inputs."""


@dataclass(frozen=True)
class Adapter:
    """A backend: functions that write its random checkpoint, build it and run it.

    `items` is the number of frames or windows that `ask` passes to the network.
    """

    make: Callable[[Path], Path]
    build: Callable[..., Any]
    ask: Callable[[Any], Answer]
    options: dict[str, Any]
    items: int = FRAMES

    def load(self, folder: Path, device: str, dtype: str) -> Any:
        """Load the backend with the checkpoint in a folder."""
        return self.build(model=str(folder), device=device, dtype=dtype, offline=True, **self.options)


def pictures() -> list[ImageArray]:
    """Return frames of one moving image of soft shapes."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (9, 20, 3)).astype(np.float32)
    wide = np.kron(coarse, np.ones((10, 10, 1), dtype=np.float32))
    wide += rng.normal(0, 12, wide.shape)
    wide = wide.clip(0, 255).astype(np.uint8)
    return [np.ascontiguousarray(wide[:, 4 * i : 4 * i + SIZE[1]]) for i in range(FRAMES)]


def windows(rate: int = 16_000) -> list[AudioWindow]:
    """Return a second of audio for each frame: tones of different pitch in noise."""
    rng = np.random.default_rng(6)
    time = np.arange(rate) / rate
    sounds = [np.sin(2 * np.pi * 220 * (i + 1) * time) + rng.normal(0, 0.2, rate) for i in range(FRAMES)]
    return [
        AudioWindow(Waveform((0.3 * sound).astype(np.float32), rate), float(i), i + 1.0)
        for i, sound in enumerate(sounds)
    ]


def _captions(captioner: Any) -> Answer:
    return [
        caption.text if caption.score is None else caption.score for caption in chain(*captioner.caption(windows()))
    ]


def _translation(translator: Any) -> Answer:
    heard = [Caption("dog barking", 0.8, float(i), i + 1.0) for i in range(FRAMES)]
    [answer] = translator.translate([Request(tuple((caption,) for caption in heard))])
    return [phrase for frame in answer.frames for phrase in frame]


def _views(translator: Any) -> Answer:
    """Translate with a request for every frame, each with its own picture."""
    frames = [Frame(i, i + 0.5, image) for i, image in enumerate(pictures())]
    clip = Clip("moving", tuple(frame.time for frame in frames), 1.0, SIZE, lambda wanted: iter(frames), None)
    notes = tuple((Caption(f"dog barking {i}", 0.8, float(i), i + 1.0),) for i in range(FRAMES))
    [answer] = translator.translate([Request(notes, pictures=frame_pictures(clip, notes))])
    return [phrase for frame in answer.frames for phrase in frame]


def _detections(detector: Any) -> Answer:
    found = detector.detect(pictures(), [PHRASES] * FRAMES)
    return [detection.score for frame in found for detection in frame[:3]]


def _masks(segmenter: Any) -> Answer:
    found = segmenter.segment(pictures(), [BOXES] * FRAMES)
    return [number for mask in chain(*found) for number in (mask.score, _share(mask.rle))]


def _finds(segmenter: Any) -> Answer:
    found = segmenter.segment_phrases(pictures(), [PHRASES] * FRAMES)
    return [detection.score for frame in found for detection, _ in frame[:3]]


def _tracks(tracker: Any) -> Answer:
    """Track an object from the first frame through the others."""
    first = (Segment(_block(), (30.0, 20.0, 70.0, 60.0), "dog", 0.9),)
    frames = [Frame(i, i / 8, image) for i, image in enumerate(pictures())]
    tracked = [TrackedFrame(frame, ("dog",), first if i == 0 else (), key=i == 0) for i, frame in enumerate(frames)]
    return [_share(segment.mask) for frame in tracker.track(iter(tracked)) for segment in frame.segments]


def _verdicts(verifier: Any) -> Answer:
    segments = [[Segment(_block(), (30.0, 20.0, 70.0, 60.0), "dog", 0.5)] for _ in range(FRAMES)]
    verdicts = verifier.verify(pictures(), segments, [PHRASES] * FRAMES)
    return [verdict.score for verdict in chain(*verdicts)]


def _block() -> RLE:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[20:60, 30:70] = True
    return mask_to_rle(mask)


def _share(mask: RLE) -> float:
    return float(rle_to_mask(mask).mean())


def _mm(folder: Path) -> Path:
    return tiny_detectors.save_grounding_dino(folder, mm=True)


def _llava(folder: Path) -> Path:
    return tiny_lms.make_vlm(folder, kind="llava")  # the simulated device cannot make Qwen3-VL's positions


def _fused(folder: Path) -> Path:
    return tiny_models.make_clap(folder, fused=True)


def _hq(folder: Path) -> Path:
    return tiny_models.make_sam(folder, hq=True)


_CLAP = {"vocabulary": ["dog", "bell", "engine"], "threshold": 0.0, "min_ratio": 0.0, "things": False}
_BATCH = {"batch_size": FRAMES}
_DINO, _DINO_CLASS = tiny_detectors.save_grounding_dino, GroundingDinoDetector
_VLM = {"max_new_tokens": 4, "max_reprompts": 0, "max_runs": 1, "batch_size": FRAMES, "max_pixels": 1 << 16}
_LLM = {"prompt": "tiny", "max_new_tokens": 8, "max_reprompts": 0}

ADAPTERS: dict[str, Adapter] = {
    "clap": Adapter(tiny_models.make_clap, ClapCaptioner, _captions, _CLAP),
    "clap-fused": Adapter(_fused, ClapCaptioner, _captions, _CLAP),
    "ast": Adapter(tiny_audio.make_ast, AudioTaggerCaptioner, _captions, {"threshold": 0.0, "things": False}),
    "qwen2-audio": Adapter(tiny_audio.make_qwen2_audio, AudioLmCaptioner, _captions, {"max_new_tokens": 4}),
    "llm": Adapter(tiny_lms.make_lm, LlmTranslator, _translation, _LLM),
    "vlm": Adapter(_llava, VlmTranslator, _views, _VLM),
    "grounding-dino": Adapter(_DINO, _DINO_CLASS, _detections, _BATCH),
    "grounding-dino-per-phrase": Adapter(_DINO, _DINO_CLASS, _detections, _BATCH | {"phrases_per_caption": 1}),
    "mm-grounding-dino": Adapter(_mm, _DINO_CLASS, _detections, _BATCH),
    "omdet-turbo": Adapter(tiny_detectors.save_omdet_turbo, OmDetTurboDetector, _detections, _BATCH),
    "owlv2": Adapter(tiny_detectors.save_owlv2, Owlv2Detector, _detections, _BATCH),
    "sam": Adapter(tiny_models.make_sam, SamSegmenter, _masks, _BATCH),
    "sam-multimask": Adapter(tiny_models.make_sam, SamSegmenter, _masks, _BATCH | {"multimask": True}),
    "sam-hq": Adapter(_hq, SamHqSegmenter, _masks, _BATCH),
    "sam2": Adapter(tiny_sams.make_sam2, Sam2Segmenter, _masks, _BATCH),
    "sam2-of-video": Adapter(tiny_sams.make_sam2_video, Sam2Segmenter, _masks, _BATCH),
    "sam3": Adapter(tiny_sams.make_sam3, Sam3Segmenter, _finds, {"floor": 0.0}),
    "sam3-of-video": Adapter(tiny_sams.make_sam3_video, Sam3Segmenter, _finds, {"floor": 0.0}),
    "sam3-lite-text": Adapter(tiny_sams.make_sam3_lite_text, Sam3LiteTextSegmenter, _finds, {"floor": 0.0}),
    "sam2-video": Adapter(tiny_sams.make_sam2_video, Sam2VideoTracker, _tracks, {}),
    "sam3-video": Adapter(tiny_sams.make_sam3_video, Sam3VideoTracker, _tracks, {}),
    "clip": Adapter(make_clip, ClipVerifier, _verdicts, {}),
}


def difference(one: Answer, other: Answer) -> float:
    """Return the largest absolute difference of two outputs; infinite if lengths or texts differ."""
    if len(one) != len(other):
        return float("inf")
    return max(map(_distance, one, other), default=float("inf"))


def _distance(one: float | str, other: float | str) -> float:
    if isinstance(one, str) or isinstance(other, str):
        return 0.0 if one == other else float("inf")
    return abs(one - other)


def answers(names: Sequence[str], folders: dict[str, Path], device: str, dtype: str) -> dict[str, Answer]:
    """Run the named adapters on a device."""
    return {name: ADAPTERS[name].ask(ADAPTERS[name].load(folders[name], device, dtype)) for name in names}
