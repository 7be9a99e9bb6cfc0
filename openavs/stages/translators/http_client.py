"""The way to a chat server and back: the `openai` client, with what it leaves open closed.

Its own retries are off, because they know no total budget; what is read of a reply is bounded, of an error's too;
redirects are not followed, so that a key and the captions reach the named server alone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import openai

from openavs.stages.translators.endpoint import Endpoint
from openavs.stages.translators.parsing import ParseError
from openavs.stages.translators.responses import OVERSIZED, ChatResponse, TransientError

logger = logging.getLogger(__name__)

NO_ANSWER = "the server did not answer in time"
UNREACHABLE = "the server cannot be reached"
BROKEN_OFF = "the connection to the server broke off"

_MOST = 4 << 20  # bytes of an answer that are read: a thinking model's come with its thoughts
_MOST_OF_ERROR = 64 << 10

# httpx2 carries the client since openai 3, httpx did before; either may be here for another package's sake.
_TRANSPORT = tuple(import_module(name).HTTPError for name in ("httpx2", "httpx") if find_spec(name))


class _Refused(Exception):
    """Carries a reply with an error status past the client, which would read its body without bound."""

    def __init__(self, reply: ChatResponse) -> None:
        super().__init__(reply.status)
        self.reply = reply


class ChatClient:
    """Connections to one server; belongs to one event loop. `timeout` in seconds holds for each read and write."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self._client = openai.AsyncOpenAI(
            api_key=endpoint.key or "EMPTY",  # the client wants one
            base_url=endpoint.url,
            timeout=timeout,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                # A proxy of the environment would carry elsewhere what is meant for this machine.
                trust_env=not endpoint.loopback,
                follow_redirects=False,
                event_hooks={"response": [_raise_refusal]},
            ),
        )

    async def post(self, fields: Mapping[str, Any], extra: Mapping[str, Any]) -> ChatResponse:
        """The reply to one chat request, whatever its status; Fault where there is none, AnswerError for a flood."""
        create = self._client.chat.completions.with_streaming_response.create
        headers = {"Accept-Encoding": "identity"}  # a small reply cannot unpack into a large one
        try:
            async with create(**fields, extra_body=dict(extra) or None, extra_headers=headers) as response:
                body, cut = await _read(response.iter_bytes(), _MOST)
        except _Refused as refused:
            return refused.reply
        except openai.APITimeoutError as error:
            raise TransientError(NO_ANSWER) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, _Refused):  # openai 2 wraps whatever a hook raises
                return error.__cause__.reply
            logger.debug("no connection to the server: %r", error.__cause__ or error)
            raise TransientError(UNREACHABLE) from error
        except _TRANSPORT as error:
            raise TransientError(BROKEN_OFF) from error
        if cut:
            raise ParseError(OVERSIZED)
        return ChatResponse(response.status_code, response.headers, body)

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()


async def _raise_refusal(response: Any) -> None:
    """A hook of the HTTP library: reads a bounded part of an error's body before the client reads all of it."""
    if not 200 <= response.status_code < 300:
        body, _ = await _read(response.aiter_bytes(), _MOST_OF_ERROR)
        raise _Refused(ChatResponse(response.status_code, response.headers, body))


async def _read(chunks: AsyncIterator[bytes], most: int) -> tuple[bytes, bool]:
    """The first `most` bytes and whether there are more."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > most:
            return bytes(body[:most]), True
    return bytes(body), False
