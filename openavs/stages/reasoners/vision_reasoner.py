"""Vision language models as reasoners: one request per clip about numbered candidates, and one more if necessary.

SAM 3 or a detector with a tracker finds all candidates, and a model accepts or rejects each with the evidence shown:
the order of AgentRVOS (arXiv 2603.23489) and of the training-free systems of 2026. Numbers on the masks: set-of-mark
prompting (arXiv 2310.11441).
"""

from __future__ import annotations

import base64
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from openavs.errors import InputError
from openavs.media.images import encode_jpeg, fit_picture
from openavs.models.chat_api.chat_server import ChatServer, Usage
from openavs.models.chat_api.endpoint import ParseError
from openavs.models.vision_chat import MAX_BYTES, MAX_PIXELS, VisionModel, VisionRequest, VisionServer
from openavs.stages.prompting import clean_text, load_prompt
from openavs.stages.reasoners.judgment import Judgment, parse_judgment
from openavs.stages.reasoners.question import ClipQuestion, build_question, candidate_key
from openavs.structures.types import (
    CandidateDecision,
    ClipEvidence,
    Decision,
    Reasoning,
    Rejection,
    Segment,
    TrackedFrame,
    Verdict,
)
from openavs.utils.text import pluralize

NAME = "reasoner"
"""Reason of rejections, and verifier of verdicts."""

MAX_ATTEMPTS = 2
"""Requests per clip."""

MAX_CANDIDATES, MAX_FRAMES = 30, 6

Hidden = Literal["keep", "reject"]
Decide = Callable[[ClipQuestion], Judgment]

_MAX_KEPT_ANSWER = 8000  # characters of an answer in a result
_SCORES: Mapping[Decision, float] = {"kept": 1.0, "unresolved": 0.5}


class VisionReasoner(ABC):
    """Lets a vision language model accept or reject the candidates of a clip.

    The model is shown the frames in which the candidates are seen best, their masks outlined and numbered, and as text
    the captions or events with their times, and the phrase, score, times and verdicts of each candidate. After an
    unusable or incomplete answer it is prompted once more. Candidates without a valid decision are kept as
    `unresolved`, and a warning of the clip gives the reason.

    Args:
        prompt: name or path of a prompt template.
        max_candidates: candidates in the request, the best by score and time.
        max_frames: frames in the picture.
        max_pixels: of the picture.
        max_new_tokens: maximum tokens of an answer; by default enough for all decisions.
        hidden: `keep` or `reject` candidates beyond `max_candidates`.
        keep_picture: whether the result has the picture.

    Raises:
        InputError: an option outside its range.
    """

    models: dict[str, dict[str, Any]]

    def __init__(
        self,
        *,
        prompt: str = "reasoner",
        max_candidates: int = MAX_CANDIDATES,
        max_frames: int = MAX_FRAMES,
        max_pixels: int = MAX_PIXELS,
        max_new_tokens: int | None = None,
        hidden: Hidden = "keep",
        keep_picture: bool = True,
    ) -> None:
        least = 1 if max_new_tokens is None else min(1, max_new_tokens)
        if min(max_candidates, max_frames, least) < 1 or max_frames > 12 or max_candidates > 99:
            raise InputError(
                f"{NAME}: max_candidates must be from 1 to 99, max_frames from 1 to 12 and max_new_tokens at least 1, "
                f"not {max_candidates}, {max_frames}, {max_new_tokens}"
            )
        self.template = load_prompt(prompt)
        if set(self.template.variables) != {"sounds", "candidates", "count", "frames"} or not self.template.system:
            raise InputError(
                f"{NAME}: the prompt '{self.template.name}' must have a [system] section and exactly the variables "
                "sounds, candidates, count, frames; use the prompt 'reasoner'"
            )
        self.max_candidates, self.max_frames, self.max_pixels = max_candidates, max_frames, max_pixels
        self.max_new_tokens, self.hidden, self.keep_picture = max_new_tokens, hidden, keep_picture

    @abstractmethod
    def answer(self, requests: Sequence[VisionRequest]) -> list[str | ParseError]:
        """Return the model's answer to each request, or the ParseError that prevented one."""

    def reason(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """See `Reasoner.reason`."""
        return self.reason_with(self.decide, frames, evidence)

    def reason_with(
        self, decide: Decide, frames: Iterable[TrackedFrame], evidence: ClipEvidence
    ) -> Iterator[TrackedFrame]:
        """Do the same with another function for the request and the answers, such as a cached one."""
        question = build_question(
            frames,
            evidence,
            self.template,
            max_candidates=self.max_candidates,
            max_frames=self.max_frames,
            max_pixels=self.max_pixels,
            max_tokens=self.max_new_tokens,
        )
        judgment = Judgment()
        if question.request is not None:
            judgment = decide(question)
            evidence.record(self._reasoning(question, question.request, judgment))
        for sentence in self._warnings(question, judgment):
            evidence.warn(f"{NAME}: {sentence}")
        decisions = {key: judgment.decisions.get(n) for n, key in enumerate(question.numbers, 1)}
        for tracked in question.frames:
            keys = [candidate_key(s, tracked.frame.index, place) for place, s in enumerate(tracked.segments)]
            unshown: Decision = "rejected" if self.hidden == "reject" and question.numbers else "unresolved"
            own = [(decisions[key] or ("unresolved", ""))[0] if key in decisions else unshown for key in keys]
            yield apply_decisions(tracked, own)

    def decide(self, question: ClipQuestion) -> Judgment:
        """Send the request, and a second one after an answer that is not complete."""
        request = question.request
        assert request is not None
        judgment = Judgment()
        for _ in range(MAX_ATTEMPTS):
            [answer] = self.answer([request])
            if isinstance(answer, ParseError):
                found = Judgment(problems=(answer.reason,), transient=answer.transient, final=answer.final)
            else:
                found = parse_judgment(answer, len(question.numbers))
            judgment = found.after(judgment)
            if not found.problems or found.final:
                break
            request = replace(request, follow_up=_correction(answer, found.problems, len(question.numbers)))
        return judgment

    def _reasoning(self, question: ClipQuestion, request: VisionRequest, judgment: Judgment) -> Reasoning:
        assert request.picture is not None
        jpeg = encode_jpeg(fit_picture(request.picture, self.max_pixels), MAX_BYTES)
        rows = []
        for number, key in enumerate(question.numbers, 1):
            candidate = question.candidates[key]
            times = [question.frames[position].frame.time for position in candidate.segments]
            decision, reason = judgment.decisions.get(number, ("unresolved", ""))
            track = next(iter(candidate.segments.values())).track
            place = (candidate.phrases[0], track, candidate.score, min(times), max(times))
            rows.append(CandidateDecision(number, *place, decision, reason))
        return Reasoning(
            request.text,
            tuple(answer[:_MAX_KEPT_ANSWER] for answer in judgment.answers),
            tuple(rows),
            question.pictured,
            hashlib.sha256(jpeg).hexdigest(),
            base64.b64encode(jpeg).decode("ascii") if self.keep_picture else None,
            judgment.none,
        )

    def _warnings(self, question: ClipQuestion, judgment: Judgment) -> Iterator[str]:
        """Yield a sentence about answers that were not used, and one about candidates that were not shown."""
        count = len(question.numbers)
        if question.candidates and question.request is None:
            yield "no frame with a candidate could be decoded again, and all candidates are kept"
            return
        if missing := count - len(judgment.decisions):
            reasons = "; ".join(judgment.problems)
            yield f"{missing} of {pluralize(count, 'candidate')} kept without a decision ({reasons})"
        elif judgment.problems:
            yield f"an answer was unusable or incomplete ({'; '.join(judgment.problems)})"
        if hidden := len(question.candidates) - count:
            done = "rejected" if self.hidden == "reject" else "kept as unresolved"
            yield f"{hidden} of {pluralize(len(question.candidates), 'candidate')} not shown to the model, and {done}"


def apply_decisions(tracked: TrackedFrame, decisions: Sequence[Decision]) -> TrackedFrame:
    """Return a frame with a verdict on every segment; rejected segments become rejections."""
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    for segment, decision in zip(tracked.segments, decisions, strict=True):
        if decision == "rejected":
            rejected.append(Rejection(segment.phrase, NAME, segment.score, segment.box, None, NAME))
            continue
        verdict = Verdict(decision, _SCORES[decision], None, None, NAME)
        segments.append(replace(segment, verdicts=(*segment.verdicts, verdict)))
    return replace(tracked, segments=tuple(segments), rejected=(*tracked.rejected, *rejected))


def _correction(answer: str | ParseError, problems: Sequence[str], count: int) -> list[dict[str, str]]:
    """Return the turns after an unusable answer; some chat templates refuse two turns of the user in a row."""
    said = clean_text(answer) if isinstance(answer, str) else ""
    text = (
        f"That cannot be used: {'; '.join(problems)}. Answer again with JSON only, with each number from 1 to {count} "
        'exactly once: {"candidates": [{"number": 1, "reason": "...", "decision": "accept"}], "none": false}'
    )
    return [{"role": "assistant", "content": said or "-"}, {"role": "user", "content": text}]


# ------------------------------------------------------------------------------------------------------------ backends


class LocalVisionReasoner(VisionReasoner):
    """Runs a vision language model in this process.

    Args:
        model, device, dtype, offline: see `VisionModel`.
        prompt, max_candidates, max_frames, max_pixels, max_new_tokens, hidden, keep_picture: see `VisionReasoner`.

    Raises:
        InputError: an option outside its range.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    option_classes = (VisionReasoner,)

    def __init__(
        self, *, model: str, device: str = "auto", dtype: str = "auto", offline: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.chat = VisionModel(model, max_pixels=self.max_pixels, device=device, dtype=dtype, offline=offline)
        self.models = self.chat.models

    def answer(self, requests: Sequence[VisionRequest]) -> list[str | ParseError]:
        """See `VisionModel.answer`."""
        return self.chat.answer(requests)


class ServerVisionReasoner(VisionReasoner):
    """Sends the request to a vision language model behind an OpenAI-compatible server.

    Args:
        model, base_url, api_key_env, structured, timeout, total_timeout, max_retries, on_error, extra_body, offline:
            see `ChatServer`. With `on_error: fallback` all candidates of a clip are kept if the server fails.
        prompt, max_candidates, max_frames, max_pixels, max_new_tokens, hidden, keep_picture: see `VisionReasoner`.

    Raises:
        InputError: an option outside its range.
        ModelError: the key is missing.
    """

    option_classes = (VisionReasoner, ChatServer)
    fixed_options = ("concurrency",)

    def __init__(self, **options: Any) -> None:
        self.server = ChatServer.from_options(NAME, options, concurrency=1)
        super().__init__(**options)
        self.chat = VisionServer(self.server, max_pixels=self.max_pixels)

    @property
    def models(self) -> dict[str, dict[str, Any]]:  # type: ignore[override]
        """The model, its revision as far as the server reports it, and the server."""
        return self.server.models

    @property
    def usage(self) -> Usage:
        """Answered requests and their tokens."""
        return self.server.usage

    def answer(self, requests: Sequence[VisionRequest]) -> list[str | ParseError]:
        """See `VisionServer.answer`."""
        return self.chat.answer(requests)
