"""Calls of any backend: the parameters of its methods, and the values that they return, are checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from openavs.errors import InputError, InvalidOutputError
from openavs.stages.captioners.base import Captioner, EventCaptioner
from openavs.stages.detectors.base import Detector
from openavs.stages.reasoners.base import Reasoner
from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter
from openavs.stages.trackers.base import Tracker
from openavs.stages.translators.base import Request, Translation, Translator
from openavs.stages.verifiers.base import TemporalVerifier, Verifier
from openavs.structures.types import Caption, Detection, Event, Mask, TrackedFrame, Verdict
from openavs.utils.text import pluralize


class OutputContract(NamedTuple):
    """Contract of a method in a stage's protocol.

    Attributes:
        stage: the stage.
        protocol: the protocol that has the method.
        kind: type of the items in the list for each input.
        returns: description of the return value, for error messages.
    """

    stage: str
    protocol: Any
    kind: type
    returns: str


CONTRACTS = {
    "caption": OutputContract("captioner", Captioner, Caption, "a list of Caption for each window"),
    "translate": OutputContract(
        "translator", Translator, Translation, "a Translation for each request, with the phrases of each of its frames"
    ),
    "detect": OutputContract("detector", Detector, Detection, "a list of Detection for each image"),
    "segment": OutputContract("segmenter", Segmenter, Mask, "a list of Mask for each image, one for each box"),
    "segment_phrases": OutputContract(
        "segmenter", PhraseSegmenter, tuple, "a list of (Detection, Mask) pairs for each image"
    ),
    "verify": OutputContract("verifier", Verifier, Verdict, "a list of Verdict for each image, one for each segment"),
    "verify_clip": OutputContract(
        "verifier", TemporalVerifier, TrackedFrame, "the TrackedFrame objects that it takes, in their order"
    ),
    "events": OutputContract("captioner", EventCaptioner, Event, "a list of Event by onset"),
    "reason": OutputContract(
        "reasoner", Reasoner, TrackedFrame, "the TrackedFrame objects that it takes, in their order"
    ),
    "track": OutputContract("tracker", Tracker, TrackedFrame, "the TrackedFrame objects that it takes, in their order"),
}


def check_methods(stage: str, use: str, cls: type) -> None:
    """Check that a class has its stage's method, with the parameters of the protocol.

    Args:
        stage: the stage.
        use: the backend's name in the recipe, for error messages.
        cls: the class of the backend.

    Raises:
        InputError: the method is missing or has other parameters.
    """
    methods = [method for method, contract in CONTRACTS.items() if contract.stage == stage]
    present = [method for method in methods if callable(getattr(cls, method, None))]
    if not present and not hasattr(cls, "__getattr__"):
        names = " or ".join(map(_signature, methods))
        raise InputError(f"the {stage} {use!r} has no method {names}; add it to the class")
    for method in present:
        try:
            signature = inspect.signature(getattr(cls, method))
        except ValueError:  # a method in C may have no signature
            continue
        parameters = list(inspect.signature(getattr(CONTRACTS[method].protocol, method)).parameters)
        bound = not inspect.isfunction(inspect.getattr_static(cls, method))  # static and class methods have no self
        try:
            signature.bind(*parameters[bound:])
        except TypeError:
            raise InputError(
                f"the {stage} {use!r} has {method}{signature} and is called as {_signature(method)}; change its "
                "parameters"
            ) from None


def _signature(method: str) -> str:
    """The protocol's signature, such as `detect(images, phrases)`."""
    parameters = list(inspect.signature(getattr(CONTRACTS[method].protocol, method)).parameters)[1:]
    return f"{method}({', '.join(parameters)})"


def call_stage(method: str, backend: Any, inputs: Sequence[Any], *rest: Sequence[Sequence[Any]]) -> Any:
    """Call a stage for a batch, and check what it returns.

    Models in half precision and damaged models return NaN. No comparison with NaN is true, so without this check it
    would become an empty mask that looks like any other.

    Args:
        method: the method's name in the stage's protocol, a key of `CONTRACTS` that takes a batch.
        backend: the stage.
        inputs: images, audio windows or requests.
        rest: further arguments, each with a sequence for every input.

    Raises:
        InvalidOutputError: the return value violates the protocol, a number is not finite, or a mask has another size
            than its image.
    """
    returned = getattr(backend, method)(inputs, *rest)
    if not isinstance(returned, list | tuple):
        raise _violation(method, _describe(returned))
    if len(returned) != len(inputs):
        raise _violation(method, f"{pluralize(len(returned), 'answer')} for {pluralize(len(inputs), 'input')}")
    if method == "translate":
        _check_translations(returned, inputs)
    else:
        _check_items(method, returned, rest[0] if method in ("segment", "verify") else None)
        _check_values(method, returned, inputs)
    return returned


def _check_items(method: str, returned: Sequence[Any], given: Sequence[Sequence[Any]] | None) -> None:
    """`given` has the items of each input if every one of them needs an answer."""
    for i, items in enumerate(returned):
        if not isinstance(items, list | tuple):
            raise _violation(method, f"{_describe(items)} for an input")
        for item in items:
            if not _is_item(method, item):
                raise _violation(method, f"{_describe(item)} among the items of an input")
        if given is not None and len(items) != len(given[i]):
            raise _violation(method, f"{pluralize(len(items), 'item')} for an input with {len(given[i])}")


def _is_item(method: str, item: Any) -> bool:
    if method != "segment_phrases":
        return isinstance(item, CONTRACTS[method].kind)
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Detection) and isinstance(item[1], Mask)


def _check_translations(returned: Sequence[Any], requests: Sequence[Request]) -> None:
    for translation, request in zip(returned, requests, strict=True):
        if not isinstance(translation, Translation):
            raise _violation("translate", f"{_describe(translation)} for a request")
        if len(translation.frames) != len(request.frames):
            raise _violation("translate", f"phrases for {len(translation.frames)} of {len(request.frames)} frames")
        if translation.origins is not None and len(translation.origins) != len(request.frames):
            raise _violation("translate", f"origins for {len(translation.origins)} of {len(request.frames)} frames")
        for phrase in (phrase for phrases in translation.frames for phrase in phrases):
            if not isinstance(phrase, str):
                raise _violation("translate", f"{_describe(phrase)} as a phrase")


def call_clip_stage(method: str, backend: Any, frames: Iterable[TrackedFrame], *rest: Any) -> Iterator[TrackedFrame]:
    """Call a stage that takes all frames of a clip (`track`, `verify_clip`, `reason`), and check each that it yields.

    Raises:
        InvalidOutputError: the return value or one of its items is of another type.
    """
    returned = getattr(backend, method)(frames, *rest)
    if not isinstance(returned, Iterable):
        raise _violation(method, _describe(returned))
    for frame in returned:
        if not isinstance(frame, TrackedFrame):
            raise _violation(method, f"{_describe(frame)} among its frames")
        yield frame


def validate_events(returned: Any) -> list[Event]:
    """Return the events of a captioner.

    Raises:
        InvalidOutputError: another type, events that are not in order of their onsets, a score that is not finite or
            an offset before the onset.
    """
    if not isinstance(returned, list | tuple):
        raise _violation("events", _describe(returned))
    for event in returned:
        if not isinstance(event, Event):
            raise _violation("events", f"{_describe(event)} among its events")
        if not math.isfinite(event.score) or not 0 <= event.onset <= event.offset < math.inf:
            raise _violation(
                "events", f"{event.phrase!r:.60} from {event.onset} to {event.offset} s with score {event.score}"
            )
    if any(after.onset < before.onset for before, after in pairwise(returned)):
        raise _violation("events", "events out of order")
    return list(returned)


def _describe(value: Any) -> str:
    return "nothing (None)" if value is None else f"an object of type {type(value).__name__}"


def _violation(method: str, returned: str) -> InvalidOutputError:
    contract = CONTRACTS[method]
    return InvalidOutputError(
        f"the {contract.stage} returned {returned}; {_signature(method)} must return {contract.returns}"
    )


def _check_values(method: str, returned: Sequence[Sequence[Any]], inputs: Sequence[Any]) -> None:
    """Check that numbers are finite and that masks have the size of their image."""
    for items, given in zip(returned, inputs, strict=True):
        for item in items:
            for fault in _faults(item, given):
                raise InvalidOutputError(
                    f"the {CONTRACTS[method].stage} returned {fault}; try dtype=float32, and check that the model's "
                    "files are complete"
                )


def _faults(item: Any, given: Any) -> Iterator[str]:
    if isinstance(item, tuple):  # a box with its mask
        for part in item:
            yield from _faults(part, given)
    elif isinstance(item, Detection) and not all(map(math.isfinite, item.box)):
        yield f"an invalid box, {tuple(map(float, item.box))}"
    elif isinstance(item, Mask) and item.rle.size != given.shape[:2]:
        (height, width), image = item.rle.size, given.shape
        yield f"a mask of {height} x {width} pixels for a frame of {image[0]} x {image[1]}"
    score = getattr(item, "score", None)  # of a caption, a box, a mask or a verdict
    if score is not None and not math.isfinite(score):
        yield f"an invalid score, {score}"
