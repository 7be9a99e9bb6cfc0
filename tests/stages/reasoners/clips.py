"""A clip of numbered things with true masks, and a server that plays the model."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from openavs.stages.reasoners.vision_reasoner import ServerVisionReasoner
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Caption, Clip, ClipEvidence, Frame, Reasoning, Segment, TrackedFrame, Verdict
from tests.local_server import Answer, Fields, LocalServer, completion, serving

SIZE = (96, 128)


def tracked_frames(count: int = 4, things: int = 3, phrase: str = "dog") -> list[TrackedFrame]:
    """Frames with `things` square things of one phrase side by side; their tracks are 10, 11, ..."""
    side = SIZE[1] // max(things, 1)
    frames = []
    for index in range(count):
        segments = []
        for place in range(things):
            mask = np.zeros(SIZE, dtype=np.bool_)
            mask[20:60, place * side : place * side + max(side - 4, 1)] = True
            box = (float(place * side), 20.0, float(place * side + side), 60.0)
            verdict = Verdict("unresolved", 0.1, 0.02 * place, None, "sync")
            segments.append(Segment(mask_to_rle(mask), box, phrase, 0.5, track=10 + place, verdicts=(verdict,)))
        frames.append(TrackedFrame(Frame(index, index + 0.5, noise(index)), (phrase,), tuple(segments)))
    return frames


def noise(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


class Told:
    """The evidence of a clip, with what a reasoner says about it."""

    def __init__(self, frames: int = 4, text: str = "dog barking") -> None:
        times = tuple(index + 0.5 for index in range(frames))

        def decode(wanted: frozenset[int] | None) -> Iterator[Frame]:
            yield from (Frame(i, t, noise(i)) for i, t in enumerate(times) if wanted is None or i in wanted)

        self.warnings: list[str] = []
        self.records: list[Reasoning] = []
        clip = Clip("clip", times, 1.0, SIZE, decode, None)
        captions = [(Caption(text, 0.8, t - 0.5, t + 0.5),) for t in times]
        self.evidence = ClipEvidence(clip, (), (), self.warnings.append, captions, self.records.append)


def decisions(table: Mapping[int, str], none: bool = False, reason: str = "because") -> str:
    """The answer with a decision for each number."""
    rows = [{"number": number, "reason": reason, "decision": decision} for number, decision in table.items()]
    return json.dumps({"candidates": rows, "none": none})


@contextmanager
def reasoning_server(*answers: str | Answer, **options: Any) -> Iterator[tuple[ServerVisionReasoner, LocalServer]]:
    """A reasoner whose server gives these answers, one after the other; the last one stays."""

    def script(fields: Fields, number: int) -> Answer:
        answer = answers[min(number, len(answers)) - 1]
        return answer if isinstance(answer, Answer) else completion(answer)

    with serving(script) as server:
        yield ServerVisionReasoner(model="small", base_url=server.url, max_retries=0, **options), server


def picture_of(request: Fields) -> Image.Image:
    """The picture in a request."""
    [part] = [part for message in request["messages"] for part in parts(message) if part["type"] == "image_url"]
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))


def text_of(request: Fields) -> str:
    """The user's text in a request."""
    user = next(message for message in request["messages"] if message["role"] == "user")
    return "".join(part["text"] for part in parts(user) if part["type"] == "text")


def parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def kept_tracks(frames: list[TrackedFrame]) -> list[set[int | None]]:
    return [{segment.track for segment in frame.segments} for frame in frames]


Script = Callable[[Fields, int], Answer]
