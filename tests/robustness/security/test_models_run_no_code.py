"""A model's folder is data: nothing in it runs, be it a pickle, a Python file, a configuration or a chat template."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Outcome
from tests.robustness.security.hostile import Bomb

Run = Callable[..., Outcome]
TINY = ROOT / "openavs" / "assets" / "tiny"


def copied(name: str, tmp_path: Path, **config: Any) -> Path:
    """One of the tiny models in a folder of its own, with more in its config.json."""
    folder = shutil.copytree(TINY / name, tmp_path / name)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_the_bomb_works(canary: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(canary))).close()
    assert canary.exists()


@pytest.mark.parametrize(
    ("stage", "name"), [("captioner", "clap"), ("detector", "grounding-dino"), ("segmenter", "sam")]
)
def test_pickles_and_python_files_beside_the_weights(
    openavs: Run, video: Path, tmp_path: Path, canary: Path, stage: str, name: str
) -> None:
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer"), "evil.Evil")
    folder = copied(name, tmp_path, auto_map=auto)
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: ...\n")
    for pickled in ("pytorch_model.bin", "model.pt", "optimizer.pkl"):
        (folder / pickled).write_bytes(pickle.dumps(Bomb(canary)))
    words = ["segment", video, "--pipeline", "tiny", f"{stage}.model={folder}", "--out", tmp_path / "out", "-q"]
    assert openavs(*words).code == 0
    assert not canary.exists()
    (folder / "model.safetensors").unlink()
    refused = openavs(*words[:-1], "--overwrite")
    assert refused.code == 2 and "pickle weights only" in refused.err and not canary.exists()


TEMPLATES = (
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{% for c in ''.__class__.__base__.__subclasses__() %}{% if c.__name__ == '_wrap_close' %}"
    "{{ c.__init__.__globals__['system']('touch CANARY') }}{% endif %}{% endfor %}",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_templates_work_without_a_sandbox(canary: Path, template: str) -> None:
    from jinja2 import Environment

    Environment(autoescape=True).from_string(template.replace("CANARY", str(canary))).render()
    assert canary.exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_hostile_chat_template(openavs: Run, video: Path, tmp_path: Path, canary: Path, template: str) -> None:
    folder = copied("lm", tmp_path)
    text = template.replace("CANARY", str(canary))
    (folder / "chat_template.jinja").write_text(text)
    done = openavs("segment", video, "--pipeline", "tiny", f"translator.model={folder}", "--out", tmp_path / "out")
    assert not canary.exists()
    assert done.code in (1, 2) and "Traceback" not in done.err


def test_a_checkpoint_that_is_a_bomb(tmp_path: Path, canary: Path) -> None:
    from openavs.errors import InputError
    from openavs.models.convert import convert

    (tmp_path / "sam.pth").write_bytes(pickle.dumps({"model": Bomb(canary)}))
    with pytest.raises(InputError, match="must not be trusted"):
        convert(tmp_path / "sam.pth", tmp_path / "out")
    assert not canary.exists() and not (tmp_path / "out").exists()
