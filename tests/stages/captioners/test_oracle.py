"""The oracle says what the clip's metadata says, and refuses a clip that has none."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.stages.captioners.base import Captioner
from openavs.stages.captioners.oracle import OracleCaptioner
from openavs.structures.types import AudioWindow, Waveform

SOUND = Waveform(np.zeros(16000, dtype=np.float32), 16000)


def test_every_window_has_all_labels_of_the_clip() -> None:
    windows = [AudioWindow(SOUND, float(i), i + 1.0, ("dog", "emergency car")) for i in range(2)]
    heard = OracleCaptioner().caption(windows)
    assert [[caption.text for caption in captions] for captions in heard] == [["dog", "emergency car"]] * 2
    assert {caption.score for captions in heard for caption in captions} == {1.0}
    assert [(captions[0].start, captions[0].end) for captions in heard] == [(0.0, 1.0), (1.0, 2.0)]


def test_a_clip_without_labels_is_refused() -> None:
    with pytest.raises(InputError, match="MS3's never does"):
        OracleCaptioner().caption([AudioWindow(SOUND, 0.0, 1.0)])


def test_any_recipe_can_use_it_by_its_short_name() -> None:
    recipe = load_recipe("tiny", ["captioner={use: oracle}", "translator={use: none}"])
    assert (recipe.captioner.use, recipe.captioner.options) == ("oracle", {})
    assert recipe.detector == load_recipe("tiny").detector
    assert isinstance(OracleCaptioner(), Captioner)
    assert load_recipe("oracle").captioner.use == "oracle"
