"""The same model in this process and behind a real OpenAI-compatible server: the same answers, one request a clip."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import openavs
from openavs.errors import ModelError
from openavs.models.chat_api.endpoint import ParseError
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.translators.chat import ChatRequest
from openavs.stages.translators.llm import LlmTranslator
from openavs.stages.translators.openai import OpenAITranslator
from openavs.stages.translators.parsing import AnswerSchema
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import sample_scene
from scripts.train_tiny.lm_data import TEST, example
from tests.local_server import Answer, Fields, completion, serving

HOME = str(Path(openavs.__file__).parent / "assets" / "tiny" / "lm")
UP = 120.0  # s: importing torch takes long on a busy machine

pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn: pip install transformers[serving]")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with the tiny language model; yields its base address."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cache = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", HOME, "--device", "cpu"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | cache, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log.txt")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + UP
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"transformers serve did not come up:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module")
def llm() -> LlmTranslator:
    return LlmTranslator(model="openavs:tiny/lm", prompt="tiny", max_new_tokens=160, device="cpu", dtype="float32")


def remote(url: str, model: str = HOME, **options: Any) -> OpenAITranslator:
    settings: dict[str, Any] = {"prompt": "tiny", "max_new_tokens": 160, "offline": True, "timeout": 60.0}
    return OpenAITranslator(model=model, base_url=url, **settings | options)


def test_answers_equal_those_in_this_process(served: str, llm: LlmTranslator) -> None:
    clips = [example(TEST, 0, index).request for index in range(12)]
    there = remote(served)

    assert there.translate(clips) == llm.translate(clips)
    assert there.usage.requests == 12
    assert there.usage.completion_tokens > 12 * 4
    assert there.models[HOME]["revision"]


def test_an_unknown_model_is_an_error_for_the_user(served: str) -> None:
    with pytest.raises(ModelError, match="does not serve the model 'another'"):
        remote(served, model="another").translate([example(TEST, 0, 0).request])


# ---------------------------------------------------------------------------------------- counted in the whole pipeline


def scenes() -> list[Any]:
    return [scene_to_clip(sample_scene("ms3", "test", 9, seed).scene, f"clip-{seed}") for seed in range(2)]


def test_one_request_per_clip_over_http(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [tiny(clip).frames for clip in scenes()]
    model = tiny.translator
    assert isinstance(model, LlmTranslator)

    def answer(fields: Fields, number: int) -> Answer:
        text = model._chat([ChatRequest(fields["messages"], AnswerSchema(1), 160)])[0]
        assert not isinstance(text, ParseError)
        return completion(text)

    with serving(answer) as local:
        monkeypatch.setattr(tiny, "translator", remote(local.url))
        found = [tiny(clip).frames for clip in scenes()]

    assert len(local.requests) == len(found) == 2
    assert found == expected
    assert any(frame.segments for frames in found for frame in frames)


def test_one_request_per_clip_in_this_process(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny.translator
    generate, prompts = model._generate, list[list[int]]()

    def counted(tokens: list[list[int]], new: int) -> Any:
        prompts.extend(tokens)
        return generate(tokens, new)

    monkeypatch.setattr(model, "_generate", counted)
    for clip in scenes():
        tiny(clip)

    assert len(prompts) == 2
