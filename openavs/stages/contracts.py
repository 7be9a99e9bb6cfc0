"""What the methods of stages take and return, checked for any backend: errors name the stage and the contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from openavs.errors import InputError, InvalidOutputError
from openavs.stages.captioners.base import Captioner
from openavs.stages.detectors.base import Detector
from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter
from openavs.stages.trackers.base import TrackedFrame, Tracker
from openavs.stages.translators.base import Request, Translation, Translator
from openavs.stages.verifiers.base import Verdict, Verifier
from openavs.structures.types import Caption, Detection, Mask
from openavs.utils.text import pluralize


class OutputContract(NamedTuple):
    """A method of a stage's protocol and what it returns: for each input a list of `kind`, described by `returns`."""

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
    "track": OutputContract("tracker", Tracker, TrackedFrame, "the TrackedFrames that it takes, in their order"),
}


def check_methods(stage: str, use: str, cls: type) -> None:
    """Check that a class has its stage's method and that it takes what the pipeline gives.

    Raises:
        InputError: the method is missing or has other parameters.
    """
    calls = [call for call, contract in CONTRACTS.items() if contract.stage == stage]
    there = [call for call in calls if callable(getattr(cls, call, None))]
    if not there and not hasattr(cls, "__getattr__"):
        raise InputError(f"the {stage} {use!r} has no method {' or '.join(map(_spelled, calls))}; add it to the class")
    for call in there:
        own = getattr(cls, call)
        try:
            signature = inspect.signature(own)
        except ValueError:  # a method in C may not say what it takes
            continue
        wanted = list(inspect.signature(getattr(CONTRACTS[call].protocol, call)).parameters)
        bound = not inspect.isfunction(inspect.getattr_static(cls, call))  # a static or class method has no self
        try:
            signature.bind(*wanted[bound:])
        except TypeError:
            raise InputError(
                f"the {stage} {use!r} has {call}{signature} and is called as {_spelled(call)}; change its parameters"
            ) from None


def _spelled(call: str) -> str:
    """`detect(images, phrases)`, as the protocol has it."""
    parameters = list(inspect.signature(getattr(CONTRACTS[call].protocol, call)).parameters)[1:]
    return f"{call}({', '.join(parameters)})"


def validate_output(call: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a stage's method so that what it returns is checked.

    Args:
        call: the method's name in the stage's protocol, a key of `CONTRACTS` other than `track`.
        method: bound, of any backend.

    Returns:
        A function of that name, which raises UnusableAnswer for anything else than the protocol describes.
    """

    def run(inputs: Sequence[Any], *rest: Sequence[Sequence[Any]]) -> Any:
        returned = method(inputs, *rest)
        if not isinstance(returned, list | tuple):
            raise _broken(call, _named(returned))
        if len(returned) != len(inputs):
            raise _broken(call, f"{pluralize(len(returned), 'answer')} for {pluralize(len(inputs), 'input')}")
        if call == "translate":
            _check_translations(returned, inputs)
        else:
            _check_items(call, returned, rest[0] if call in ("segment", "verify") else None)
        return returned

    run.__name__ = call
    return run


def _check_items(call: str, returned: Sequence[Any], given: Sequence[Sequence[Any]] | None) -> None:
    """`given` are the items of each input where each has one answer of its own."""
    for place, own in enumerate(returned):
        if not isinstance(own, list | tuple):
            raise _broken(call, f"{_named(own)} for an input")
        for item in own:
            if not _is_item(call, item):
                raise _broken(call, f"{_named(item)} among the items of an input")
        if given is not None and len(own) != len(given[place]):
            raise _broken(call, f"{pluralize(len(own), 'item')} for an input with {len(given[place])}")


def _is_item(call: str, item: Any) -> bool:
    if call != "segment_phrases":
        return isinstance(item, CONTRACTS[call].kind)
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Detection) and isinstance(item[1], Mask)


def _check_translations(returned: Sequence[Any], requests: Sequence[Request]) -> None:
    for translation, request in zip(returned, requests, strict=True):
        if not isinstance(translation, Translation):
            raise _broken("translate", f"{_named(translation)} for a request")
        if len(translation.frames) != len(request.frames):
            raise _broken("translate", f"phrases for {len(translation.frames)} of {len(request.frames)} frames")
        if translation.origins is not None and len(translation.origins) != len(request.frames):
            raise _broken("translate", f"origins for {len(translation.origins)} of {len(request.frames)} frames")
        for phrase in (phrase for own in translation.frames for phrase in own):
            if not isinstance(phrase, str):
                raise _broken("translate", f"{_named(phrase)} as a phrase")


def validate_tracked_frames(returned: Any) -> Iterator[TrackedFrame]:
    """Yield what a tracker returned; raises InvalidOutputError for anything else than tracked frames."""
    if not isinstance(returned, Iterable):
        raise _broken("track", _named(returned))
    for frame in returned:
        if not isinstance(frame, TrackedFrame):
            raise _broken("track", f"{_named(frame)} among its frames")
        yield frame


def _named(value: Any) -> str:
    return "nothing (None)" if value is None else f"an object of type {type(value).__name__}"


def _broken(call: str, returned: str) -> InvalidOutputError:
    contract = CONTRACTS[call]
    return InvalidOutputError(
        f"the {contract.stage} returned {returned}; {_spelled(call)} must return {contract.returns}"
    )
