"""Chat model behind an OpenAI-compatible server as a translator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openavs.models.chat_api.chat_server import ChatServer, Usage
from openavs.models.chat_api.endpoint import ParseError
from openavs.models.vision_chat import MAX_PIXELS, VisionServer
from openavs.stages.translators.chat import ChatRequest, ChatTranslator, answer_in_groups


class OpenAITranslator(ChatTranslator):
    """Sends one request per clip for JSON that fits a schema; the lexicon answers for a server that fails.

    Args:
        model, base_url, api_key_env, structured, timeout, total_timeout, max_retries, concurrency, on_error,
            extra_body, offline: see `ChatServer`. With `on_error: fallback` the lexicon answers, and the note gives
            the reason.
        max_new_tokens: maximum tokens of an answer; by default enough for the longest that the schema allows. Set a
            number for a thinking model, whose thoughts count, too.
        prompt, max_reprompts, max_phrases, max_runs, max_frames, contact_sheet: see `ChatTranslator`.
        max_pixels: maximum height times width of a contact sheet, which is sent as a JPEG file of at most 1 MB.

    Raises:
        InputError: an option outside its range, or a prompt that does not mention the contact sheet.
        ModelError: the key is missing.
    """

    option_classes = (ChatTranslator, ChatServer)

    def __init__(self, *, contact_sheet: bool = False, max_pixels: int = MAX_PIXELS, **options: Any) -> None:
        self.server = ChatServer.from_options("translator", options)
        super().__init__(contact_sheet, **options)
        self._vision = VisionServer(self.server, max_pixels=max_pixels)

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The model, its revision as far as the server reports it, and the server."""
        return self.server.models

    @property
    def usage(self) -> Usage:
        """Answered requests and their tokens."""
        return self.server.usage

    def _chat(self, requests: Sequence[ChatRequest]) -> list[str | ParseError]:
        return answer_in_groups(self._vision, requests, 4 * self.server.concurrency)
