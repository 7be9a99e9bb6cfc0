"""A chat model behind an OpenAI-compatible server as translator: vLLM, transformers serve, llama.cpp, a paid one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from openavs.errors import InputError
from openavs.stages.translators.chat import MAX_FRAMES, MAX_RUNS, ChatQuestion, ChatTranslator
from openavs.stages.translators.endpoint import OPENAI, find_endpoint
from openavs.stages.translators.parsing import ParseError
from openavs.stages.translators.prompting import MAX_PHRASES
from openavs.stages.translators.request_options import RequestOptions, Structured
from openavs.stages.translators.server import ChatServer, RequestLimits, Usage


class OpenAITranslator(ChatTranslator):
    """Asks a server once per clip, at temperature 0, for JSON that fits a schema where the server can hold to one.

    A server that is down, slow, overloaded or broken is tried again with growing, jittered waits (or those it asks
    for) until tries or budget run out; then the lexicon answers and the note says why. After three such questions in a
    row the lexicon answers for half a minute without asking. What only the user can mend (a key that is not accepted,
    an unknown model) is a ModelError instead, because it would fail every clip alike.

    Args:
        model: the model's name at the server.
        base_url: the server's address, as in http://localhost:8000/v1; OpenAI's by default.
        api_key_env: environment variable that holds the key. Default: OPENAI_API_KEY for OpenAI's own server, and no
            key for any other.
        prompt: name or path of a prompt template.
        retries: further questions after an unusable answer.
        structured: `auto` asks for a JSON schema and does without where the server refuses, `json_schema` insists,
            `none` never asks.
        max_new_tokens: tokens of an answer at most; by default enough for the longest that the question allows. Set a
            number for a thinking model, whose thoughts count, too.
        max_phrases: phrases a frame keeps.
        max_runs, max_frames: runs or frames in one question, as the prompt asks; longer clips are asked in parts.
        timeout: seconds that one try may take.
        budget: seconds that all tries of a question may take, the waits between them included.
        tries: how often a question is sent before the server counts as failing.
        concurrency: questions in flight at once.
        when_down: whether the `lexicon` stands in for a server that fails, or that is an `error`.
        extra_body: further fields of the request, such as {chat_template_kwargs: {enable_thinking: false}} for vLLM.
        offline: allows no server but one on this machine.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str = OPENAI,
        api_key_env: str | None = None,
        prompt: str = "default",
        retries: int = 1,
        structured: Structured = "auto",
        max_new_tokens: int | None = None,
        max_phrases: int = MAX_PHRASES,
        max_runs: int = MAX_RUNS,
        max_frames: int = MAX_FRAMES,
        timeout: float = 60.0,
        budget: float = 120.0,
        tries: int = 4,
        concurrency: int = 8,
        when_down: Literal["lexicon", "error"] = "lexicon",
        extra_body: dict[str, Any] | None = None,
        offline: bool = False,
    ) -> None:
        super().__init__(
            prompt=prompt,
            retries=retries,
            max_phrases=max_phrases,
            max_runs=max_runs,
            max_frames=max_frames,
            max_new_tokens=max_new_tokens,
        )
        if min(tries, concurrency) < 1:
            raise InputError("the translator's options 'tries' and 'concurrency' must be at least 1 each")
        if not (0 < timeout < float("inf") and 0 < budget < float("inf")):
            raise InputError("the translator's options 'timeout' and 'budget' are seconds above 0")
        endpoint = find_endpoint(base_url, api_key_env, offline)
        self.server = ChatServer(
            RequestOptions(endpoint, model, structured=structured),
            RequestLimits(timeout, budget, tries, concurrency),
            must_answer=when_down == "error",
            extra_body=extra_body,
        )

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The model, which of its versions answered as far as the server tells, and the server."""
        server = self.server
        return {server.model: {"revision": server.served, "license": None, "server": server.endpoint.url}}

    @property
    def usage(self) -> Usage:
        """Requests answered and tokens used so far, as the server counts them."""
        return self.server.usage

    def _chat(self, questions: Sequence[ChatQuestion]) -> list[str | ParseError]:
        return self.server.ask(questions)
