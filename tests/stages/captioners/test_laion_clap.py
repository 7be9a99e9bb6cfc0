"""Without its package the laion-clap captioner says what to install; with it, see tests/packages. Its checkpoints."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openavs.errors import InputError
from openavs.models.convert import convert
from openavs.registry import Registry
from openavs.stages.captioners.laion_clap import LaionClapCaptioner
from tests.tiny_models import make_clap


@pytest.mark.skipif(find_spec("laion_clap") is not None, reason="laion-clap is installed")
def test_the_absent_package_is_named_with_its_extra(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'laion-clap cannot be used: .*pip install "openavs\[laion-clap\]"'):
        LaionClapCaptioner(model=str(make_clap(tmp_path / "clap")))


def test_options_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="laion-clap: top_k"):
        LaionClapCaptioner(model="nowhere", top_k=0)
    with pytest.raises(InputError, match="laion-clap: template"):
        LaionClapCaptioner(model="nowhere", template="a sound")


def test_the_registry_knows_it_and_the_extra_it_needs() -> None:
    entry = Registry("captioner").entry("laion-clap")
    assert entry.extra == "laion-clap"
    assert Registry("captioner").load("laion-clap") is LaionClapCaptioner


def test_a_checkpoint_of_its_training_is_converted(tmp_path: Path) -> None:
    """A pickle with NumPy numbers beside the weights, whose names say that they were trained in parallel."""
    name = "audio_branch.patch_embed.proj.weight"
    state = {f"module.{name}": torch.ones(96, 1, 4, 4), "module.logit_scale_a": torch.tensor(4.6)}
    torch.save({"epoch": 3, "best": np.float64(0.5), "name": "run", "state_dict": state}, tmp_path / "best.pt")
    convert(tmp_path / "best.pt", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"model_type": "laion-clap"}
    assert set(load_file(tmp_path / "out/model.safetensors")) == {name, "logit_scale_a"}


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "run",))

    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match="contains more than tensors and must not be trusted"):
        convert(tmp_path / "trap.pt", tmp_path / "out")
    assert not (tmp_path / "run").exists()
