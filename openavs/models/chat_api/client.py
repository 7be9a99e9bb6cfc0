"""HTTP client of a chat server, and the meaning of its responses.

Adaptations to the `openai` package: its retries are off, because they have no total time limit; the bytes read of a
response are limited, also those of an error; redirects are not followed, so that the key and the data reach only
the named server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
import openai

from openavs.errors import ModelError
from openavs.models.chat_api.endpoint import EMPTY, REFUSED, TOO_LONG, Endpoint, ParseError, TransientError

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_ANSWER = "the server did not answer in time"
UNREACHABLE = "the server cannot be reached"
DISCONNECTED = "the connection to the server broke"
NO_COMPLETION = "the server's response is not a chat completion"
OVERSIZED = "the server's response is too large"

AMBIGUOUS_STATUS = {400, 422, 500, 501}  # servers reject fields with these, with or without an explanation
_TRANSIENT_STATUS = {408, 409, 425, 429}  # and every 5xx
_MAX_BODY = 4 << 20  # bytes of a response: that of a thinking model includes its thoughts
_MAX_ERROR_BODY = 64 << 10

_FIELD_NAMES = {  # the servers' words for a field that they reject
    "response_format": re.compile(r"response_format|json_schema|schema|grammar|guided|structured", re.IGNORECASE),
    "max_tokens": re.compile(r"\bmax_tokens\b"),
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
}
_UNSUPPORTED = re.compile(
    r"un(?:supported|known|recogni[sz]ed|expected)|not (?:supported|allowed|permitted)|extra", re.I
)
_PICTURE = re.compile(r"image|vision|multi-?modal|mmproj", re.IGNORECASE)
_NOT_TAKEN = re.compile(
    r"unsupported|unknown variant|invalid content|valid string|must be (?:a )?string|no endpoints?|only (?:be )?support"
    r"|(?:not|n't) (?:a |an |have )?(?:support|accept|multi-?modal|vision|allow|enabled|available|able|capab|expect)",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(r"context[ _]length|maximum context|context window|too long|too many tokens", re.I)


@dataclass(frozen=True)
class ChatResponse:
    """One HTTP response; of an error only the first 64 KiB of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """True for a status of success."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body as text, with replacement characters for invalid bytes."""
        return self.body.decode("utf-8", errors="replace")


def parse_completion(response: ChatResponse) -> dict[str, Any]:
    """Parse a chat completion with a message.

    Raises:
        ParseError: the body is HTML, broken JSON or of another shape.
    """
    try:
        completion = json.loads(response.body)
        message = completion["choices"][0]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ParseError(NO_COMPLETION)
    return dict(completion)


def message_text(completion: Mapping[str, Any]) -> str:
    """Return the text of a completion's message.

    Raises:
        ParseError: the message has no text, because of a filter or otherwise.
    """
    choice = completion["choices"][0]
    message = choice["message"]
    content = message.get("content")
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise ParseError(REFUSED)
    if content is None:
        raise ParseError(EMPTY)
    if not isinstance(content, str):
        raise ParseError(NO_COMPLETION)
    return content


def rejected_field(response: ChatResponse, fields: Mapping[str, Any]) -> str | None:
    """Return the optional field that an error response names as unsupported; None for any other error."""
    if response.status not in AMBIGUOUS_STATUS or _TOO_LONG.search(response.text):
        return None
    for field, names in _FIELD_NAMES.items():
        named = field in fields and names.search(response.text)
        if named and (field == "response_format" or _UNSUPPORTED.search(response.text)):
            return field
    return None


def rejects_pictures(response: ChatResponse, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether an error response to messages with a picture means that the server takes none."""
    if response.status not in {*AMBIGUOUS_STATUS, 404, 415} or not _PICTURE.search(response.text):
        return False
    parts = (part for message in messages if isinstance(message["content"], list) for part in message["content"])
    return bool(_NOT_TAKEN.search(response.text)) and any(part.get("type") == "image_url" for part in parts)


def classify_error(response: ChatResponse, endpoint: Endpoint, model: str) -> TransientError | ParseError | ModelError:
    """Return the exception for an error response: temporary, about this request only, or for the user to fix."""
    status, url = response.status, endpoint.url
    if status == 401 and endpoint.variable:
        return ModelError(
            f"the server {url} does not accept the key in the environment variable {endpoint.variable} (HTTP 401); put "
            "a valid one there"
        )
    if status == 401:
        return ModelError(
            f"the server {url} requires a key (HTTP 401); put it into an environment variable and name that one with "
            "the option 'api_key_env'"
        )
    if status == 403:
        return ModelError(f"the key may not use the model '{model}' at the server {url} (HTTP 403); use another key")
    if status == 402 or (status == 429 and "insufficient_quota" in response.text):
        return ModelError(f"the account at {url} has no credit left (HTTP {status}); top it up or use another server")
    if 300 <= status < 400:
        return ModelError(f"the server {url} redirects elsewhere (HTTP {status}); give that address as 'base_url'")
    if status in _TRANSIENT_STATUS or status >= 500:
        fault = "is overloaded" if status in (429, 503) else "fails"
        return TransientError(f"the server {fault} (HTTP {status})", retry_after(response.headers))
    if _TOO_LONG.search(response.text) or status == 413:
        return ParseError(TOO_LONG, final=True)
    if status == 404 or re.search(rf"['`\"]{re.escape(model)}['`\"]", response.text):
        return ModelError(
            f"the server {url} does not serve the model '{model}' (HTTP {status}); check the options "
            "'model' and 'base_url', which usually ends in /v1"
        )
    return ParseError(f"the server refused the request (HTTP {status})", final=True)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait: `Retry-After` (a number or a date) or OpenAI's `retry-after-ms`; None without."""
    milliseconds, wait = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else float(wait or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(wait or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None  # not for NaN


# ----------------------------------------------------------------------------------------------------------- the client


class _ErrorResponse(openai.OpenAIError):
    """Carries an error response past the client, which would read its whole body; it re-raises its own errors."""

    def __init__(self, response: ChatResponse) -> None:
        super().__init__(f"HTTP {response.status}")
        self.response = response


class ChatClient:
    """`openai.AsyncOpenAI` on an event loop in a thread of its own.

    The thread lets synchronous callers have many requests in flight, also those with a running loop (a notebook, a web
    page), and keeps connections open between calls.

    Args:
        endpoint: the server.
        timeout: seconds for each read and write.
        concurrency: size of `slots`, the semaphore for requests in flight.
    """

    def __init__(self, endpoint: Endpoint, timeout: float, concurrency: int) -> None:
        self.slots = asyncio.Semaphore(concurrency)
        self._openai = openai.AsyncOpenAI(
            api_key=endpoint.key or "EMPTY",  # the client requires one
            base_url=endpoint.url,
            timeout=timeout,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                # A proxy of the environment would divert requests that are meant for this machine.
                trust_env=not endpoint.loopback,
                follow_redirects=False,
                event_hooks={"response": [_raise_error_response]},
            ),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="chat-client", daemon=True)
        self._thread.start()

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    @property
    def alive(self) -> bool:
        """False after `close`, and in a forked child: threads do not survive a fork."""
        return self._thread.is_alive()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop and return its result; an interrupt (Ctrl-C) cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # without effect on a finished one

    async def post(self, fields: Mapping[str, Any], extra_body: Mapping[str, Any]) -> ChatResponse:
        """Send one chat request and return the response, whatever its status.

        Raises:
            TransientError: there is no response.
            ParseError: the response is larger than 4 MiB.
        """
        create = self._openai.chat.completions.with_streaming_response.create
        headers = {"Accept-Encoding": "identity"}  # a small response cannot decompress into a large one
        try:
            async with create(**fields, extra_body=dict(extra_body) or None, extra_headers=headers) as response:
                body, oversized = await _read(response.iter_bytes(), _MAX_BODY)
        except _ErrorResponse as error:
            return error.response
        except openai.APITimeoutError as error:
            raise TransientError(NO_ANSWER) from error
        except openai.APIConnectionError as error:
            logger.debug("no connection to the server: %r", error.__cause__ or error)
            raise TransientError(UNREACHABLE) from error
        except httpx2.HTTPError as error:
            raise TransientError(DISCONNECTED) from error
        if oversized:
            raise ParseError(OVERSIZED)
        return ChatResponse(response.status_code, response.headers, body)

    def close(self) -> None:
        """Close the connections and stop the thread; may be called twice."""
        if self.alive:
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
            if threading.current_thread() is not self._thread:  # garbage is collected in any thread, also in this one
                self._thread.join(timeout=5)

    async def _shut_down(self) -> None:
        try:
            await self._openai.close()
        finally:
            self._loop.stop()


async def _raise_error_response(response: Any) -> None:
    """HTTP hook: read a limited part of an error's body before the client reads all of it."""
    if not 200 <= response.status_code < 300:
        body, _ = await _read(response.aiter_bytes(), _MAX_ERROR_BODY)
        raise _ErrorResponse(ChatResponse(response.status_code, response.headers, body))


async def _read(chunks: AsyncIterator[bytes], limit: int) -> tuple[bytes, bool]:
    """The first `limit` bytes, and whether there are more."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            return bytes(body[:limit]), True
    return bytes(body), False
