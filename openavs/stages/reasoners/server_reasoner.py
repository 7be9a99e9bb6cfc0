"""Vision language models behind an OpenAI-compatible server as reasoners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openavs.models.chat_api.chat_server import ChatServer, OnError, Structured, Usage
from openavs.models.chat_api.endpoint import OPENAI
from openavs.models.chat_api.faults import ParseError
from openavs.models.vision_chat import MAX_PIXELS, VisionRequest, VisionServer
from openavs.stages.reasoners.vision_reasoner import MAX_CANDIDATES, MAX_FRAMES, NAME, Hidden, VisionReasoner


class ServerVisionReasoner(VisionReasoner):
    """Sends the request to a vision language model behind an OpenAI-compatible server.

    Args:
        model, base_url, api_key_env, structured, timeout, total_timeout, max_retries, on_error, extra_body, offline:
            see `ChatServer`. With `on_error: fallback` all candidates of a clip are kept if the server fails.
        prompt, max_candidates, max_frames, max_pixels, max_new_tokens, hidden, keep_picture: see `VisionReasoner`.

    Raises:
        InputError: an option outside its range.
        ModelError: the key is missing.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str = OPENAI,
        api_key_env: str | None = None,
        prompt: str = "reasoner",
        max_candidates: int = MAX_CANDIDATES,
        max_frames: int = MAX_FRAMES,
        max_pixels: int = MAX_PIXELS,
        max_new_tokens: int | None = None,
        hidden: Hidden = "keep",
        keep_picture: bool = True,
        structured: Structured = "auto",
        timeout: float = 60.0,
        total_timeout: float = 120.0,
        max_retries: int = 3,
        on_error: OnError = "fallback",
        extra_body: dict[str, Any] | None = None,
        offline: bool = False,
    ) -> None:
        super().__init__(
            prompt=prompt,
            max_candidates=max_candidates,
            max_frames=max_frames,
            max_pixels=max_pixels,
            max_new_tokens=max_new_tokens,
            hidden=hidden,
            keep_picture=keep_picture,
        )
        self.server = ChatServer(
            model=model,
            base_url=base_url,
            api_key_env=api_key_env,
            structured=structured,
            timeout=timeout,
            total_timeout=total_timeout,
            max_retries=max_retries,
            concurrency=1,
            on_error=on_error,
            extra_body=extra_body,
            offline=offline,
            stage=NAME,
        )
        self.chat = VisionServer(self.server, max_pixels=max_pixels)

    @property
    def models(self) -> dict[str, dict[str, Any]]:  # type: ignore[override]
        """The model, its revision as far as the server reports it, and the server."""
        return self.server.models

    @property
    def usage(self) -> Usage:
        """Answered requests and their tokens."""
        return self.server.usage

    def answer(self, requests: Sequence[VisionRequest]) -> list[str | ParseError]:
        """See `VisionServer.answer`."""
        return self.chat.answer(requests)
