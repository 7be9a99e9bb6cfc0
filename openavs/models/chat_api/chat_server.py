"""One chat model behind an OpenAI-compatible server: vLLM, transformers serve, llama.cpp, a paid API.

Retries, waits and the circuit breaker are here, once for all stages; a stage makes the messages and reads the answers.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
import time
import weakref
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    before_sleep_log,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
)

from openavs.errors import InputError, ModelError
from openavs.models.chat_api.client import (
    AMBIGUOUS_STATUS,
    NO_ANSWER,
    ChatClient,
    ChatResponse,
    classify_error,
    message_text,
    parse_completion,
    rejected_field,
    rejects_pictures,
)
from openavs.models.chat_api.endpoint import NO_PICTURES, OPENAI, ParseError, TransientError, find_endpoint
from openavs.utils.text import printable

logger = logging.getLogger(__name__)

Structured = Literal["auto", "json_schema", "none"]
OnError = Literal["fallback", "raise"]

CIRCUIT_OPEN = "the server failed the requests before this one"
LONG_WAIT = "the server requests a longer wait than the total time limit allows"

CIRCUIT_BREAKER_FAILURES = 3  # consecutive failed requests after which the server is not contacted
CIRCUIT_BREAKER_SECONDS = 30.0
_FIRST_WAIT, _MAX_WAIT = 0.5, 20.0  # s, between attempts


@dataclass
class Usage:
    """Answered requests and their tokens, as counted by the server."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class ServerRequest:
    """One request: messages of the OpenAI protocol, the maximum tokens of the answer, and its JSON schema if any."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    schema_name: str = "answer"


class ChatServer:
    """Sends requests at temperature 0 and returns the texts of the answers.

    A server that is down, slow, overloaded or broken is tried again after growing, jittered waits (or those of
    `Retry-After`) until the attempts or the time are used up. After three consecutive failures the server is not
    contacted for 30 seconds. An error that only the user can fix (an invalid key, an unknown model) is a ModelError,
    because it would fail every clip alike.

    Args:
        stage: the stage that uses it, for error messages.
        model: the model's name at the server.
        base_url: the server's address, as in http://localhost:8000/v1; OpenAI's by default.
        api_key_env: environment variable that holds the key. Default: OPENAI_API_KEY for OpenAI's own server, and no
            key for any other.
        structured: `auto` requests a JSON schema unless the server rejects it, `json_schema` requires it, `none` omits
            it.
        timeout: seconds per attempt.
        total_timeout: seconds for all attempts of a request, including the waits between them.
        max_retries: further attempts after a failed one.
        concurrency: maximum number of requests in flight.
        on_error: `fallback` (a failure is returned) or `raise`, for a server that fails.
        extra_body: further fields of the request, such as {chat_template_kwargs: {enable_thinking: false}} for vLLM.
        offline: allows only a server on this machine.

    Raises:
        InputError: an option outside its range.
        ModelError: the key is missing.
    """

    def __init__(
        self,
        stage: str = "translator",
        /,
        *,
        model: str,
        base_url: str = OPENAI,
        api_key_env: str | None = None,
        structured: Structured = "auto",
        timeout: float = 60.0,
        total_timeout: float = 120.0,
        max_retries: int = 3,
        concurrency: int = 8,
        on_error: OnError = "fallback",
        extra_body: Mapping[str, Any] | None = None,
        offline: bool = False,
    ) -> None:
        if max_retries < 0 or concurrency < 1:
            raise InputError(
                f"the {stage}'s option 'max_retries' is at least 0 and 'concurrency' at least 1, not {max_retries} and "
                f"{concurrency}"
            )
        if not (0 < timeout < float("inf") and 0 < total_timeout < float("inf")):
            raise InputError(f"the {stage}'s options 'timeout' and 'total_timeout' are seconds above 0")
        self.model, self.endpoint, self.stage = model, find_endpoint(base_url, api_key_env, offline), stage
        self.structured: Structured = structured
        self.timeout, self.total_timeout, self.max_retries = timeout, total_timeout, max_retries
        self.concurrency, self.on_error, self.extra_body = concurrency, on_error, dict(extra_body or {})
        self.usage = Usage()
        self.served: str | None = None  # the model's name as the server reports it, often with its date
        self._omitted: set[str] = set()  # optional fields that the server rejects
        self._schema_works = False
        self._failures, self._circuit_open_until = 0, 0.0
        self._resume_at = 0.0  # end of the wait that the server requested for all requests
        self._client: ChatClient | None = None
        self._client_lock = threading.Lock()

    @classmethod
    def from_options(cls, stage: str, options: dict[str, Any], **fixed: Any) -> ChatServer:
        """Make a server of those of the options that are its own, which are removed from the dictionary."""
        own = inspect.signature(cls).parameters.keys() & options.keys()
        return cls(stage, **{key: options.pop(key) for key in own}, **fixed)

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The model, its revision as far as the server reports it, and the server."""
        return {self.model: {"revision": self.served, "license": None, "server": self.endpoint.url}}

    def answer(self, requests: Sequence[ServerRequest]) -> list[str | ParseError]:
        """Return the text of each answer, or the ParseError that prevented one; all requests are in flight at once.

        Raises:
            ModelError: the user has to fix the address, the key or the model's name, or `on_error` is `raise`.
        """
        with self._client_lock:
            if self._client is None or not self._client.alive:  # in a forked child its thread is gone
                self._client = ChatClient(self.endpoint, self.timeout, self.concurrency)
                weakref.finalize(self, self._client.close).atexit = False
        return self._client.run(self._answer_all(self._client, requests))

    async def _answer_all(self, client: ChatClient, requests: Sequence[ServerRequest]) -> list[str | ParseError]:
        tasks = [asyncio.ensure_future(self._answer(client, request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # after an error or Ctrl-C, no request stays in flight
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, client: ChatClient, request: ServerRequest) -> str | ParseError:
        async with client.slots:
            try:
                if time.monotonic() < self._circuit_open_until:
                    raise TransientError(CIRCUIT_OPEN)
                answer: str | ParseError = await self._retry(client, request)
            except ParseError as error:
                answer = error
            except TransientError as error:
                return self._fail(error)
            self._failures = 0
            return answer

    def _fail(self, error: TransientError) -> ParseError:
        """Count a failure, open the circuit after several, and raise or return it."""
        self._failures += error.reason != CIRCUIT_OPEN
        if self._failures >= CIRCUIT_BREAKER_FAILURES and self._circuit_open_until <= time.monotonic():
            self._circuit_open_until = time.monotonic() + CIRCUIT_BREAKER_SECONDS
        if self.on_error == "raise":
            raise ModelError(
                f"the server {self.endpoint.url} gives no answer ({error.reason}); start or fix it, or go on without "
                f"it with the {self.stage}'s option 'on_error: fallback'"
            ) from error
        return ParseError(error.reason, final=True, transient=True)

    async def _retry(self, client: ChatClient, request: ServerRequest) -> str:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(1 + self.max_retries) | stop_before_delay(self.total_timeout),
            wait=_backoff,
            retry=retry_if_exception(lambda error: isinstance(error, TransientError) and error.retry),
            before_sleep=before_sleep_log(logger, logging.DEBUG),
            retry_error_callback=_give_up,
        )
        answer: str = await retrying(self._attempt, client, request, time.monotonic() + self.total_timeout)
        return answer

    async def _attempt(self, client: ChatClient, request: ServerRequest, deadline: float) -> str:
        await self._await_rate_limit(deadline)
        try:
            async with asyncio.timeout(min(self.timeout, deadline - time.monotonic())):
                return await self._complete(client, request)
        except TimeoutError as error:
            raise TransientError(NO_ANSWER) from error
        except TransientError as error:
            if error.wait is not None:  # a rate limit belongs to the key and not to the request: all others wait, too
                self._resume_at = max(self._resume_at, time.monotonic() + error.wait)
            raise

    async def _await_rate_limit(self, deadline: float) -> None:
        """Wait for the time that the last `Retry-After` named, plus a jitter that spreads the waiting requests."""
        now = time.monotonic()
        wait = self._resume_at - now
        if wait > 0 and now + wait >= deadline:
            raise TransientError(LONG_WAIT, retry=False)
        if wait > 0:
            await asyncio.sleep(wait + random.uniform(0.0, min(0.25, deadline - now - wait)))

    async def _complete(self, client: ChatClient, request: ServerRequest) -> str:
        """Send a request, repeated without each field that the server rejects; later requests omit those, too."""
        omitted = set(self._omitted)
        while True:
            fields = self._fields(request, omitted)
            response = await client.post(fields, self.extra_body)
            if response.ok:
                completion = parse_completion(response)
                self._omitted |= omitted
                self._schema_works |= "response_format" in fields
                self._count(completion)
                return message_text(completion)
            field = rejected_field(response, fields)
            if field is None and rejects_pictures(response, request.messages):
                raise ParseError(NO_PICTURES, final=True)
            if field is None and self._may_be_schema(response, fields):
                field = "response_format"
            if field is None:
                self._log(response)
                raise classify_error(response, self.endpoint, self.model)
            if field == "response_format" and self.structured == "json_schema":
                raise ModelError(
                    f"the server {self.endpoint.url} takes no JSON schema; use the {self.stage}'s option "
                    "'structured: auto'"
                )
            logger.info("the server %s rejects '%s'; the request is sent without it", self.endpoint.url, field)
            omitted.add(field)

    def _may_be_schema(self, response: ChatResponse, fields: Mapping[str, Any]) -> bool:
        """True if the schema may be the cause of an error: some servers reject one without an explanation."""
        untested = "response_format" in fields and not self._schema_works
        return untested and self.structured == "auto" and response.status in AMBIGUOUS_STATUS

    def _fields(self, request: ServerRequest, omitted: Set[str]) -> dict[str, Any]:
        """The body of a chat request."""
        # OpenAI's reasoning models require the longer name.
        limit = "max_completion_tokens" if "max_tokens" in omitted else "max_tokens"
        fields: dict[str, Any] = {"model": self.model, "messages": list(request.messages), limit: request.max_tokens}
        if "temperature" not in omitted:
            fields["temperature"] = 0
        if request.schema is not None and self.structured != "none" and "response_format" not in omitted:
            schema = {"name": request.schema_name, "strict": True, "schema": dict(request.schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return fields

    def _count(self, completion: Mapping[str, Any]) -> None:
        if isinstance(completion.get("model"), str):
            self.served = completion["model"]
        usage = completion.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        prompt, answer = counts.get("prompt_tokens"), counts.get("completion_tokens")
        self.usage.requests += 1
        self.usage.prompt_tokens += prompt if isinstance(prompt, int) else 0
        self.usage.completion_tokens += answer if isinstance(answer, int) else 0

    def _log(self, response: ChatResponse) -> None:
        """Log the server's own words, which results never quote, unless they may contain parts of the key."""
        if response.status not in (401, 403):
            text = response.text.replace(self.endpoint.key, "(key)") if self.endpoint.key else response.text
            logger.debug("HTTP %d from %s: %s", response.status, self.endpoint.url, printable(text)[:200])


def _backoff(state: RetryCallState) -> float:
    """Exponential waits with jitter, in seconds; 0 if the server named a wait, which the next attempt begins with."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, TransientError) and error.wait is not None:
        return 0.0
    wait: float = min(_FIRST_WAIT * 2 ** (state.attempt_number - 1), _MAX_WAIT)
    return wait * random.uniform(0.5, 1.0)


def _give_up(state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    raise TransientError(f"{error}; attempts: {state.attempt_number}") from error
