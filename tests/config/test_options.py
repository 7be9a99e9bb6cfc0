"""Options of stages as YAML gives them: what fits an annotation, and the sentence where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from openavs.config.options import bind_options, options_of
from openavs.errors import InputError

if TYPE_CHECKING:
    from decimal import Decimal as Unknown


class Stage:
    """Takes one option of every kind."""

    def __init__(
        self,
        *,
        mode: Literal["fast", "good"] = "good",
        table: Mapping[str, int] | None = None,
        place: Path | None = None,
        count: int = 1,
        share: float = 0.5,
        words: Sequence[str] = (),
        numbers: list[float] | None = None,
        title: str = "",
        wanted: bool = False,
        device: str = "cpu",
    ) -> None:
        pass


def bound(**options: Any) -> dict[str, Any]:
    return bind_options(Stage, options, {"device": "cuda", "unknown": 1}, stage="captioner", name="stage")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"mode": "fast"}, "fast"),
        ({"table": {"a": 1}}, {"a": 1}),
        ({"table": None}, None),
        ({"place": "a/b"}, Path("a/b")),
        ({"count": "3"}, 3),
        ({"share": "3e-4"}, 0.0003),
        ({"share": 1}, 1.0),
        ({"words": ("a", "b")}, ["a", "b"]),
        ({"numbers": [1, "2e1"]}, [1.0, 20.0]),
        ({"title": "7"}, "7"),
        ({"wanted": True}, True),
    ],
)
def test_what_fits_is_taken(given: dict[str, Any], taken: Any) -> None:
    (key,) = given
    found = bound(**given)
    assert found == {"device": "cuda", key: taken}, "with what is shared, as far as the stage takes it"
    assert type(found[key]) is type(taken)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mode": "best"}, r"'captioner.mode' must be one of fast, good, not 'best' \(text\)$"),
        ({"table": [1]}, r"'captioner.table' must be a section of keys and values or nothing, not \[1\] \(a list\)$"),
        ({"place": 3}, r"'captioner.place' must be a path or nothing, not 3 \(a number\)$"),
        ({"count": 1.5}, r"'captioner.count' must be a whole number, not 1.5"),
        ({"count": True}, r"must be a whole number, not True \(true or false\)$"),
        ({"share": "many"}, r"must be a number, not 'many' \(text\)$"),
        ({"share": False}, r"must be a number, not False"),
        ({"words": "ab"}, r"must be a list of texts, not 'ab'"),
        ({"words": ["a", 3]}, r"must be a list of texts \(write 3 in quotes\), not"),
        ({"numbers": 3}, r"must be a list or nothing, not 3"),
        ({"title": 7}, r"must be text, not 7 \(a number\); write it in quotes$"),
        ({"title": ["x" * 99]}, r"must be text, not \['x{55}\.\.\. \(a list\)$"),
        ({"wanted": "yes"}, r"must be true or false, not 'yes'"),
        ({"mod": "fast"}, r"^captioner 'stage' has no option 'mod'; did you mean 'mode'\?"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        bound(**given)


def test_what_is_required_has_to_be_there() -> None:
    class Needs:
        def __init__(self, *, folder: Path) -> None:
            pass

    with pytest.raises(
        InputError, match=r"detector 'needs' needs the option 'folder'; give it in the recipe's section"
    ):
        bind_options(Needs, {}, stage="detector", name="needs")


def test_annotations_that_only_a_type_checker_sees_are_not_checked() -> None:
    class Foreign:
        def __init__(self, *, price: Unknown = 1) -> None:  # type: ignore[assignment]
            pass

    assert bind_options(Foreign, {"price": "2"}, stage="detector", name="foreign") == {"price": "2"}
    with pytest.raises(InputError, match="has no option 'prize'"):
        bind_options(Foreign, {"prize": "2"}, stage="detector", name="foreign")


class Server:
    def __init__(self, stage: str, /, *, address: str, timeout: float = 60.0, structured: bool = True) -> None: ...


class Remote:
    option_classes = (Server,)
    fixed_options = ("structured",)

    def __init__(self, *, model: str = "small", **server: object) -> None: ...


def test_options_that_are_passed_on_are_those_of_the_other_class() -> None:
    def bind(**options: object) -> dict[str, object]:
        return bind_options(Remote, options, stage="translator", name="remote")

    assert list(options_of(Remote)[0]) == ["model", "address", "timeout"]
    assert bind(address="http://localhost", timeout=3) == {"address": "http://localhost", "timeout": 3.0}
    with pytest.raises(InputError, match="has no option 'timeouts'; did you mean 'timeout'"):
        bind(timeouts=3)
    with pytest.raises(InputError, match="has no option 'structured'"):
        bind(structured=False)
    with pytest.raises(InputError, match="needs the option 'address'"):
        bind()
    with pytest.raises(InputError, match=r"the option 'translator.timeout' must be a number, not 'soon'"):
        bind(address="http://localhost", timeout="soon")
