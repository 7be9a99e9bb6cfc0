"""Asking a chat server: many questions in flight, each within its time budget, whatever the server does."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openavs.errors import ModelError
from openavs.stages.translators.chat import ChatQuestion
from openavs.stages.translators.event_loop import BackgroundLoop
from openavs.stages.translators.http_client import NO_ANSWER, ChatClient
from openavs.stages.translators.parsing import ParseError
from openavs.stages.translators.prompting import clean_text
from openavs.stages.translators.request_options import RequestOptions
from openavs.stages.translators.responses import (
    ChatResponse,
    TransientError,
    classify_error,
    completion,
    parse_completion,
)

logger = logging.getLogger(__name__)

RESTING = "the server failed the questions before this one"
TOO_LONG_A_WAIT = "the server asks for a longer wait than the time budget has"

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 20.0  # s, between tries
_PATIENCE = 3  # questions in a row that may fail before the server is left alone
_REST = 30.0  # s for which it is


@dataclass(frozen=True)
class RequestLimits:
    """Seconds that one try may take and that a question may take in all, tries per question, questions in flight."""

    timeout: float = 60.0
    budget: float = 120.0
    tries: int = 4
    concurrency: int = 8


@dataclass
class Usage:
    """What was asked of a server so far, as the server counts it."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatServer:
    """One model of one server. With `must_answer` a server that fails is a ModelError, else an AnswerError."""

    def __init__(
        self,
        manners: RequestOptions,
        limits: RequestLimits,
        *,
        must_answer: bool = False,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoint, self.model = manners.endpoint, manners.model
        self.limits, self.must_answer, self.extra_body = limits, must_answer, dict(extra_body or {})
        self.usage = Usage()
        self.served: str | None = None  # the model's name as the server gives it, often with its date
        self._manners = manners
        self._failures, self._rest_until, self._resume_at = 0, 0.0, 0.0
        self._loop: BackgroundLoop | None = None
        self._opening = threading.Lock()

    def ask(self, questions: Sequence[ChatQuestion]) -> list[str | ParseError]:
        """The answers in the order of the questions. Raises ModelError for what the user has to mend (a wrong key)."""
        return self._open().run(self._ask_all(questions))

    def _open(self) -> BackgroundLoop:
        with self._opening:
            if self._loop is None or not self._loop.alive:
                self._loop = BackgroundLoop("chat-server")
                self._in_flight = asyncio.Semaphore(self.limits.concurrency)
                self._wire = ChatClient(self.endpoint, self.limits.timeout)
                weakref.finalize(self, _close, self._loop, self._wire).atexit = False
            return self._loop

    async def _ask_all(self, questions: Sequence[ChatQuestion]) -> list[str | ParseError]:
        tasks = [asyncio.ensure_future(self._ask(question)) for question in questions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # after an error or Ctrl-C nothing is left in flight
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, question: ChatQuestion) -> str | ParseError:
        async with self._in_flight:
            try:
                if self._rest_until > _now():
                    raise TransientError(RESTING)
                data = await self._try(question)
                self._failures = 0
                return parse_completion(data)
            except ParseError as error:
                self._failures = 0  # it was there to refuse
                return error
            except TransientError as fault:
                self._failed(fault)
                return ParseError(fault.reason, final=True, passing=True)

    def _failed(self, fault: TransientError) -> None:
        self._failures += fault.reason != RESTING
        if self._failures >= _PATIENCE and self._rest_until <= _now():
            self._rest_until = _now() + _REST
        if self.must_answer:
            raise ModelError(
                f"the server {self.endpoint.url} gives no answer ({fault.reason}); start or mend it, or let the "
                "lexicon stand in with the translator's option 'when_down: lexicon'"
            )

    async def _try(self, question: ChatQuestion) -> dict[str, Any]:
        """The completion; AnswerError if the server refuses the question, Fault when tries or time have run out."""
        deadline = _now() + self.limits.budget
        tries = 0
        while True:
            await self._held(deadline)
            tries += 1
            try:
                async with asyncio.timeout(min(self.limits.timeout, deadline - _now())):
                    return await self._converse(question)
            except TimeoutError:
                fault = TransientError(NO_ANSWER)
            except TransientError as caught:
                fault = caught
            logger.debug("try %d: %s", tries, fault.reason)
            wait = 0.0
            if fault.wait is None:
                wait = min(_FIRST_WAIT * 2 ** (tries - 1), _LONGEST_WAIT) * random.uniform(0.5, 1.0)
            else:  # a limit holds for the key and not for the question: all others wait, too
                self._resume_at = max(self._resume_at, _now() + fault.wait)
            if tries >= self.limits.tries or _now() + wait >= deadline:
                raise TransientError(f"{fault.reason}; tries: {tries}") from fault
            await asyncio.sleep(wait)

    async def _held(self, deadline: float) -> None:
        """Waits as long as the server has asked for; not all questions come back at the same moment."""
        wait = self._resume_at - _now()
        if wait <= 0:
            return
        if _now() + wait >= deadline:
            raise TransientError(TOO_LONG_A_WAIT)
        await asyncio.sleep(wait + random.uniform(0.0, min(0.25, deadline - _now() - wait)))

    async def _converse(self, question: ChatQuestion) -> dict[str, Any]:
        """Sends the question, again without a field that the server turns out not to take."""
        plain = False
        while True:
            fields = self._manners.fields(question, plain)
            reply = await self._wire.post(fields, self.extra_body)
            if reply.ok:
                data = completion(reply)
                self._manners.learn(fields, plain)
                self._count(data)
                return data
            if self._manners.concedes(reply, fields):
                continue
            if not self._manners.suspects(reply, fields):
                self._log(reply)
                raise classify_error(reply, self.endpoint, self.model)
            plain = True

    def _count(self, data: Mapping[str, Any]) -> None:
        if isinstance(data.get("model"), str):
            self.served = data["model"]
        usage = data.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        self.usage.requests += 1
        self.usage.prompt_tokens += _whole(counts.get("prompt_tokens"))
        self.usage.completion_tokens += _whole(counts.get("completion_tokens"))

    def _log(self, reply: ChatResponse) -> None:
        """The server's own words, which results never quote; not where they may hold parts of the key."""
        if reply.status not in (401, 403):
            text = reply.text[:2000]
            text = text.replace(self.endpoint.key, "(key)") if self.endpoint.key else text
            logger.debug("HTTP %d from %s: %s", reply.status, self.endpoint.url, clean_text(text))


def _close(loop: BackgroundLoop, wire: ChatClient) -> None:
    if loop.alive:
        loop.run(wire.close())
        loop.stop()


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _now() -> float:
    return asyncio.get_running_loop().time()
