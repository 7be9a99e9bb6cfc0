"""What a chat server's reply means: an answer, a passing fault, a refusal, or something that the user must mend."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from openavs.errors import ModelError
from openavs.stages.translators.endpoint import Endpoint
from openavs.stages.translators.parsing import EMPTY, REFUSED, TOO_LONG, ParseError

NO_COMPLETION = "the server's reply is not a chat completion"
OVERSIZED = "the server's reply is too large"

_PASSING = {408, 409, 425, 429}  # and every 5xx
_WORDS = {  # what a server calls the field that it refuses
    "response_format": re.compile(r"response_format|json_schema|schema|grammar|guided|structured", re.IGNORECASE),
    "max_tokens": re.compile(r"\bmax_tokens\b"),
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
}
_UNSUPPORTED = re.compile(
    r"un(?:supported|known|recogni[sz]ed|expected)|not (?:supported|allowed|permitted)|extra", re.I
)
_TOO_LONG = re.compile(r"context[ _]length|maximum context|context window|too long|too many tokens", re.I)


@dataclass(frozen=True)
class ChatResponse:
    """One HTTP reply; of a refusal the first 64 KiB of the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the server says that it answers."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body, whatever it is."""
        return self.body.decode("utf-8", errors="replace")


class TransientError(Exception):
    """A fault that may pass: `wait` is how many seconds the server asks to wait (None: it does not say)."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def completion(reply: ChatResponse) -> dict[str, Any]:
    """The reply as a chat completion with a message, or AnswerError: HTML, broken JSON, another shape."""
    try:
        data = json.loads(reply.body)
        message = data["choices"][0]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ParseError(NO_COMPLETION)
    return dict(data)


def parse_completion(data: Mapping[str, Any]) -> str:
    """The text of a completion's answer; AnswerError where there is none, because of a filter or otherwise."""
    choice = data["choices"][0]
    message = choice["message"]
    content = message.get("content")
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise ParseError(REFUSED)
    if content is None:
        raise ParseError(EMPTY)
    if not isinstance(content, str):
        raise ParseError(NO_COMPLETION)
    return content


def refused_field(reply: ChatResponse, fields: Mapping[str, Any]) -> str | None:
    """The optional field of the request that the server says it does not take; None where it is about another thing."""
    if reply.status not in (400, 422, 500, 501) or _TOO_LONG.search(reply.text):
        return None
    for field, words in _WORDS.items():
        named = field in fields and words.search(reply.text)
        if named and (field == "response_format" or _UNSUPPORTED.search(reply.text)):
            return field
    return None


def classify_error(reply: ChatResponse, endpoint: Endpoint, model: str) -> TransientError | ParseError | ModelError:
    """What a reply that is no answer means for the question."""
    status, url = reply.status, endpoint.url
    if status == 401:
        return ModelError(_no_entry(endpoint))
    if status == 403:
        return ModelError(f"the server {url} does not let this key use the model '{model}' (HTTP 403); use another key")
    if status == 402 or (status == 429 and "insufficient_quota" in reply.text):
        return ModelError(f"the account at {url} has no credit left (HTTP {status}); top it up or use another server")
    if 300 <= status < 400:
        return ModelError(f"the server {url} redirects elsewhere (HTTP {status}); give that address as 'base_url'")
    if status in _PASSING or status >= 500:
        what = "is overloaded" if status in (429, 503) else "fails"
        return TransientError(f"the server {what} (HTTP {status})", retry_after(reply.headers))
    if _TOO_LONG.search(reply.text) or status == 413:
        return ParseError(TOO_LONG, final=True)
    if status == 404 or re.search(rf"['`\"]{re.escape(model)}['`\"]", reply.text):
        return ModelError(
            f"the server {url} does not know the model '{model}' (HTTP {status}); check the translator's options "
            "'model' and 'base_url', which usually ends in /v1"
        )
    return ParseError(f"the server refused the question (HTTP {status})", final=True)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `Retry-After` (a number or a date) or OpenAI's `retry-after-ms`; None where unsaid."""
    milliseconds, wait = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        seconds = float(milliseconds) / 1000 if milliseconds else float(wait or "")
    except ValueError:
        try:
            seconds = parsedate_to_datetime(wait or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None  # not for NaN


def _no_entry(endpoint: Endpoint) -> str:
    if endpoint.variable:
        return (
            f"the server {endpoint.url} does not accept the key in the environment variable {endpoint.variable} "
            "(HTTP 401); put a valid one there"
        )
    return (
        f"the server {endpoint.url} wants a key (HTTP 401); put it into an environment variable and name that one with "
        "the translator's option 'api_key_env'"
    )
