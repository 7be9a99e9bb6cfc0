"""The captioner at a server: requests with audio, several questions, and faults that the result explains."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.caching.store import StageCache
from openavs.caching.wrappers import CachedCaptioner
from openavs.config.recipe import load_recipe
from openavs.errors import InputError, ModelError
from openavs.models.chat_api import chat_server
from openavs.stages.captioners.base import Captioner
from openavs.stages.captioners.openai_audio import NO_CAPTION, OpenAIAudioCaptioner
from openavs.structures.types import AudioWindow, Waveform
from tests.local_server import Answer, Fields, LocalServer, completion, refusal, serving


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits between attempts."""
    monkeypatch.setattr(chat_server, "_FIRST_WAIT", 0.02)


def captioner(at: LocalServer, **options: Any) -> OpenAIAudioCaptioner:
    settings = {"timeout": 8.0, "total_timeout": 16.0, "max_retries": 1} | options
    return OpenAIAudioCaptioner(model="omni", base_url=at.url, **settings)


def window(seconds: float = 1.0, rate: int = 48000, start: float = 0.0) -> AudioWindow:
    samples = np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate).astype(np.float32) / 2
    return AudioWindow(Waveform(samples, rate), start, start + seconds)


def sent_audio(fields: Fields) -> tuple[int, int, int]:
    """Channels, rate and samples of the WAV file in a request."""
    [part] = [part for part in fields["messages"][0]["content"] if part["type"] == "input_audio"]
    assert part["input_audio"]["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as file:
        return file.getnchannels(), file.getframerate(), file.getnframes()


def test_a_window_is_sent_as_wav_with_its_question() -> None:
    with serving(lambda *_: completion("  A dog\n barks. ")) as local:
        model = captioner(local, questions=["Which sounds?"])
        [[caption]] = model.caption([window(start=2.0)])

    assert isinstance(model, Captioner)
    assert (caption.text, caption.score, caption.start, caption.end) == ("A dog barks.", None, 2.0, 3.0)
    assert caption.question == "Which sounds?" and not caption.weak
    [fields] = local.requests
    assert sent_audio(fields) == (1, 16000, 16000)
    assert fields["messages"][0]["content"][-1] == {"type": "text", "text": "Which sounds?"}
    assert (fields["model"], fields["temperature"], fields["max_tokens"]) == ("omni", 0, 128)
    assert "response_format" not in fields
    assert model.models["omni"]["revision"] == "small-1"


def test_every_window_gets_an_answer_to_every_question_in_order() -> None:
    def answer(fields: Fields, number: int) -> Answer:
        return completion(f"{fields['messages'][0]['content'][-1]['text']} {sent_audio(fields)[2]}")

    windows = [window(0.5), AudioWindow(Waveform(np.zeros(0, np.float32), 8000), 1, 1), window(1.0)]
    with serving(answer) as local:
        captions = captioner(local, questions=["a", "b"], concurrency=3).caption(windows)

    assert [[c.text for c in own] for own in captions] == [["a 8000", "b 8000"], [], ["a 16000", "b 16000"]]
    assert local.max_in_flight <= 3


def test_a_long_window_is_cropped_to_its_center() -> None:
    with serving(lambda *_: completion("rain")) as local:
        captioner(local, max_seconds=2.0).caption([window(5.0)])
    assert sent_audio(local.requests[0]) == (1, 16000, 32000)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refusal(503), "the server is overloaded (HTTP 503)"),
        (refusal(400, "This model does not support audio input"), "the server refused the request (HTTP 400)"),
        (completion(None, refusal="I will not."), "the model refused to answer"),
        (Answer(b"<html>"), "the server's response is not a chat completion"),
    ],
)
def test_a_fault_becomes_a_weak_caption_with_its_reason(answer: Answer, reason: str) -> None:
    with serving(lambda *_: answer) as local:
        [[caption]] = captioner(local).caption([window()])
    assert caption.weak and caption.score is None
    assert caption.text.startswith(NO_CAPTION) and reason in caption.text


def test_an_answer_without_words_is_left_out() -> None:
    with serving(lambda *_: completion(" \n ")) as local:
        assert captioner(local).caption([window()]) == [[]]


def test_a_fault_can_be_an_error() -> None:
    with serving(lambda *_: refusal(500)) as local, pytest.raises(ModelError, match="captioner's option 'on_error"):
        captioner(local, on_error="raise").caption([window()])


def test_a_fault_is_not_cached_and_an_answer_is(tmp_path: Path) -> None:
    with serving(lambda _, number: refusal(400, "no") if number == 1 else completion("rain")) as local:
        cached = CachedCaptioner(captioner(local), StageCache(tmp_path), "print")
        assert [cached.caption([window()])[0][0].weak for _ in range(3)] == [True, False, False]
    assert len(local.requests) == 2


def test_a_server_elsewhere_is_refused_offline() -> None:
    with pytest.raises(InputError, match="offline"):
        OpenAIAudioCaptioner(model="omni", base_url="http://example.org/v1", offline=True)


@pytest.mark.parametrize("options", [{"rate": 100}, {"max_new_tokens": 0}, {"max_seconds": 0}, {"questions": []}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="openai-audio"):
        OpenAIAudioCaptioner(model="omni", base_url="http://localhost:1/v1", **options)


def test_a_key_in_place_of_the_address_is_refused_in_a_recipe() -> None:
    with pytest.raises(InputError, match="base_url"):
        load_recipe("tiny", ["captioner={use: openai-audio, model: m, base_url: 'http://user:secret@host/v1'}"])


def test_the_name_of_a_served_model_is_not_a_reference() -> None:
    recipe = load_recipe("tiny", ["captioner={use: openai-audio, model: m, base_url: 'http://localhost:1/v1'}"])
    assert "captioner" not in recipe.models()
