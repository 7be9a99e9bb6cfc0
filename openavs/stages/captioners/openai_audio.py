"""Audio language model behind an OpenAI-compatible server as a captioner: Qwen3-Omni, MiDashengLM, Gemini, GPT.

Windows are sent as WAV in `input_audio` parts of the OpenAI protocol, which vLLM's server takes, too.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from openavs.errors import InputError
from openavs.media.audio import encode_wav, resample
from openavs.models.chat_api.chat_server import ChatServer, ServerRequest, Usage
from openavs.models.chat_api.endpoint import ParseError
from openavs.stages.captioners.base import one_line, validate_questions
from openavs.structures.types import AudioWindow, Caption, Waveform

QUESTIONS = ("Name every sound in this recording and the thing that makes it, in one short sentence. No speculation.",)
"""One question per window: each further one sends the audio again."""

NO_CAPTION = "no caption"


class OpenAIAudioCaptioner:
    """Captions windows with the answers of a model at a server; greedy, and one request per window and question.

    A window has one caption per question, in the order of the questions, without a score; an answer without words is
    left out. If the server fails or the model refuses, the window has a weak caption `no caption (REASON)` instead,
    so that the result holds the reason; weak captions have no prompts and are not cached.

    Args:
        model, base_url, api_key_env, timeout, total_timeout, max_retries, concurrency, on_error, extra_body, offline:
            see `ChatServer`.
        questions: prompts for each window.
        max_new_tokens: maximum tokens of an answer.
        rate: sample rate of the audio that is sent, in Hz.
        max_seconds: longer windows are cropped to their center.

    Raises:
        InputError: an option outside its range.
        ModelError: the key is missing.
    """

    option_classes = (ChatServer,)
    fixed_options = ("structured",)

    def __init__(
        self,
        *,
        questions: Sequence[str] = QUESTIONS,
        max_new_tokens: int = 128,
        rate: int = 16000,
        max_seconds: float = 30.0,
        **server: Any,
    ) -> None:
        self.questions = validate_questions("openai-audio", questions)
        if max_new_tokens < 1 or not 8000 <= rate <= 48000 or not 0 < max_seconds <= 60:
            raise InputError(
                "openai-audio: max_new_tokens is at least 1, rate from 8000 to 48000 Hz and max_seconds above 0 and at "
                f"most 60, not {max_new_tokens}, {rate} and {max_seconds}"
            )
        self.max_new_tokens, self.rate, self.max_seconds = max_new_tokens, rate, max_seconds
        self.server = ChatServer("captioner", **server)

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The model, its revision as far as the server reports it, and the server."""
        return self.server.models

    @property
    def usage(self) -> Usage:
        """Answered requests and their tokens."""
        return self.server.usage

    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """Return one list of captions per window, of any length and rate; a window without samples has none."""
        requests = [
            ServerRequest(_messages(sound, question), self.max_new_tokens)
            for sound in (self._wav(window.audio) for window in windows if len(window.audio.samples))
            for question in self.questions
        ]
        answers = iter(self.server.answer(requests))
        captions: list[list[Caption]] = []
        for window in windows:
            questions = self.questions if len(window.audio.samples) else ()
            own = [_caption(next(answers), window, question) for question in questions]
            captions.append([caption for caption in own if caption is not None])
        return captions

    def _wav(self, audio: Waveform) -> str:
        """Return the samples that are sent, as a WAV file in base64."""
        surplus = audio.duration - self.max_seconds
        if surplus > 0:
            audio = audio.cut(surplus / 2, surplus / 2 + self.max_seconds)
        return base64.b64encode(encode_wav(resample(audio, self.rate))).decode("ascii")


def _messages(sound: str, question: str) -> list[dict[str, Any]]:
    part = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]


def _caption(answer: str | ParseError, window: AudioWindow, question: str) -> Caption | None:
    """Make the caption of an answer; None for one without words."""
    if isinstance(answer, ParseError):
        return Caption(f"{NO_CAPTION} ({answer.reason})", None, window.start, window.end, question, weak=True)
    text = one_line(answer)
    return Caption(text, None, window.start, window.end, question) if text else None
