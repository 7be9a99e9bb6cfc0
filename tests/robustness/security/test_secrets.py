"""A key is sent to its server only; it is in no file, no output and no log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openavs.synthetic.datasets import write_clip, write_layout
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.conftest import Outcome
from tests.local_server import Answer, completion, phrases, refusal, serving

KEY = "sk-proj-canary0123456789ABCDEFGHIJ"
TOKEN = "hf_canary0123456789abcdefghij"
VARIABLE = "OPENAVS_TEST_KEY"
Run = Callable[..., Outcome]

SERVERS: dict[str, Callable[[Any, int], Answer]] = {
    "answers": lambda fields, number: phrases(["dog"], ["dog"]),
    "accepts no key and repeats it": lambda *_: refusal(401, f"Incorrect API key provided: {KEY}"),
    "fails and repeats it": lambda *_: refusal(500, f"internal: Authorization: Bearer {KEY}"),
    "refuses and repeats it": lambda *_: refusal(400, f"your key {KEY} is odd"),
    "answers with it": lambda *_: completion(f'{{"0": ["{KEY}"], "1": ["dog"]}}'),
    "answers nonsense with it": lambda *_: completion(f"I was given {KEY}"),
    "breaks off": lambda *_: Answer(b"{", headers={"Content-Length": "1000"}),
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Both secrets in the environment, and every logger of every package talking."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "dog.mp4"
    write_clip(path, plan_scene([Role("dog", (True, True))], scene_rng("test", 40), 2, (96, 128)), fps=4)
    return path


def asking(url: str) -> list[str]:
    """The overrides that put a chat server in the place of tiny's translator."""
    options = f"use: openai, model: small, base_url: {url}, api_key_env: {VARIABLE}, max_retries: 1, timeout: 2"
    return ["--pipeline", "tiny", f"translator={{{options}, total_timeout: 5, structured: none}}"]


def leaks(folder: Path, *texts: str) -> Iterator[str]:
    """The places of a secret: files below the folder, by name, or `text` for printed and logged text."""
    for secret in (KEY, TOKEN):
        for path in folder.rglob("*"):
            if secret in str(path) or (path.is_file() and secret.encode() in path.read_bytes()):
                yield str(path)
        if any(secret in text for text in texts):
            yield "text"


@pytest.mark.parametrize("kind", SERVERS)
def test_segment(openavs: Run, video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    with serving(SERVERS[kind]) as local:
        done = openavs("segment", video, *asking(local.url), "--out", tmp_path / "out", "-v", "-v")
    assert local.headers and all(sent["authorization"] == f"Bearer {KEY}" for sent in local.headers)
    assert done.code == (2 if "accepts no key" in kind else 0), done.err
    assert list(leaks(tmp_path, done.out, done.err, caplog.text)) == []


@pytest.mark.robustness
def test_a_label_job(openavs: Run, video: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The plan, the logs of its workers and the manifests included."""
    with serving(SERVERS["fails and repeats it"]) as local:
        done = openavs("label", video, *asking(local.url), "--out", tmp_path / "job", "-v")
    assert local.headers and (tmp_path / "job" / "work/manifest.json").is_file()
    assert list(leaks(tmp_path, done.out, done.err, caplog.text)) == []


def test_an_evaluation(openavs: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_layout("s4", tmp_path / "data", {"train": 0, "val": 0, "test": 1})
    with serving(SERVERS["answers"]) as local:
        words = ["evaluate", "s4", "--root", tmp_path / "data", *asking(local.url), "--out", tmp_path / "run"]
        done = openavs(*words)
    assert local.headers and done.code == 0, done.err
    assert list(leaks(tmp_path, done.out, done.err, caplog.text)) == []


@pytest.mark.parametrize(
    "misplaced",
    [
        f"translator.api_key_env={KEY}",
        f"translator.api_key={KEY}",
        f"translator.base_url=https://me:{KEY}@host/v1",
        f"translator.base_url=https://h/?k={KEY}",
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(openavs: Run, video: Path, tmp_path: Path, misplaced: str) -> None:
    """Written where the name of a variable or an address belongs: refused before anything is saved."""
    for command in (["segment", video, "--out", tmp_path / "a"], ["label", video, "--out", tmp_path / "b"]):
        done = openavs(*command, "--pipeline", "paper", misplaced, "translator.model=small")
        assert done.code == 2
        assert list(leaks(tmp_path, done.out, done.err)) == []


def test_the_search_finds_a_secret(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text(f"x{TOKEN}")
    assert list(leaks(tmp_path, "nothing")) == [str(tmp_path / "deep" / "file")]
    assert list(leaks(tmp_path / "none", f"a {KEY}")) == ["text"]
