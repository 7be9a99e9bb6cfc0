"""The fields of a chat request, and which of them a server turns out not to take: learnt from refusals and kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from openavs.errors import ModelError
from openavs.stages.translators.chat import ChatQuestion
from openavs.stages.translators.endpoint import Endpoint
from openavs.stages.translators.responses import ChatResponse, refused_field
from openavs.stages.translators.schema import answer_schema

logger = logging.getLogger(__name__)

Structured = Literal["auto", "json_schema", "none"]

_UNNAMED = (400, 422, 500, 501)  # statuses with which servers refuse a schema without a word about it


class RequestOptions:
    """How one model of one server wants to be asked.

    `structured` says whether answers are held to a JSON schema: `auto` asks for it and goes without where the server
    refuses, `json_schema` insists, `none` never asks.
    """

    def __init__(self, endpoint: Endpoint, model: str, *, structured: Structured) -> None:
        self.endpoint, self.model, self.structured = endpoint, model, structured
        self._schema: bool | None = False if structured == "none" else None  # whether it is taken; None: not known yet
        self._temperature = True
        self._limit = "max_tokens"  # OpenAI's reasoning models insist on the longer name

    def fields(self, question: ChatQuestion, plain: bool = False) -> dict[str, Any]:
        """The request's body; `plain` leaves the schema out."""
        fields: dict[str, Any] = {"model": self.model, "messages": question.messages, self._limit: question.max_tokens}
        if self._temperature:
            fields["temperature"] = 0
        if self._schema is not False and not plain:
            named = {"name": "sounding_things", "strict": True, "schema": answer_schema(question.form)}
            fields["response_format"] = {"type": "json_schema", "json_schema": named}
        return fields

    def concedes(self, reply: ChatResponse, fields: Mapping[str, Any]) -> bool:
        """Whether the reply refuses a field that the request can do without; from now on it does."""
        refused = refused_field(reply, fields)
        if refused == "temperature":
            self._temperature = False
        elif refused == "max_tokens":
            self._limit = "max_completion_tokens"
        elif refused == "response_format":
            self._give_up_schema()
        if refused:
            logger.info("the server %s does not take '%s' and is asked without", self.endpoint.url, refused)
        return refused is not None

    def suspects(self, reply: ChatResponse, fields: Mapping[str, Any]) -> bool:
        """Whether the schema may be what a server that says nothing of it stumbles over: worth a try without."""
        unproven = self.structured == "auto" and self._schema is None
        return unproven and "response_format" in fields and reply.status in _UNNAMED

    def learn(self, fields: Mapping[str, Any], plain: bool) -> None:
        """A request went through; `plain` is one that was tried without the schema on suspicion."""
        if plain:
            self._give_up_schema()
        elif "response_format" in fields:
            self._schema = True

    def _give_up_schema(self) -> None:
        if self.structured == "json_schema":
            raise ModelError(
                f"the server {self.endpoint.url} takes no JSON schema; use the translator's option 'structured: auto'"
            )
        self._schema = False
