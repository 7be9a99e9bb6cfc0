"""The translator over HTTP: requests, rejected fields, and the handling of every fault of a server."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from openavs.config.recipe import load_recipe
from openavs.errors import InputError, ModelError
from openavs.models.chat_api import chat_server as server, client as chat_client, endpoint as errors
from openavs.models.chat_api.endpoint import Endpoint
from openavs.registry import Registry
from openavs.stages.translators import parsing as answers
from openavs.stages.translators.base import Request, Translation, Translator
from openavs.stages.translators.openai import OpenAITranslator
from tests.local_server import Answer, Fields, LocalServer, completion, phrases, refusal, serving
from tests.stages.translators.captions import request

DOG = request(["dog barking"])
KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits between attempts."""
    monkeypatch.setattr(server, "_FIRST_WAIT", 0.02)
    monkeypatch.setenv("OPENAVS_TEST_KEY", KEY)


def translator(at: LocalServer | str, **options: Any) -> OpenAITranslator:
    url = at if isinstance(at, str) else at.url
    settings = {"timeout": 8.0, "total_timeout": 16.0, "max_retries": 2, "max_reprompts": 1} | options
    return OpenAITranslator(model="small", base_url=url, **settings)


def fell_back(translation: Translation, reason: str) -> bool:
    return (translation.frames, translation.origin) == ((("dog",),), "lexicon") and reason in str(translation.note)


# ------------------------------------------------------------------------------------------------------------- requests


def test_one_request_per_clip_at_temperature_0_with_a_schema() -> None:
    with serving(lambda *_: phrases(["dog"], [])) as local:
        client = translator(local, max_new_tokens=99)
        translation = client.translate([request(["dog barking"], ["a murmur"])])[0]

    assert isinstance(client, Translator)
    assert (translation.frames, translation.origin, translation.note) == ((("dog",), ()), "llm", None)
    assert len(local.requests) == 1
    fields = local.requests[0]
    assert (fields["model"], fields["temperature"], fields["max_tokens"]) == ("small", 0, 99)
    assert [turn["role"] for turn in fields["messages"]] == ["system", "user"]
    schema = fields["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(schema["properties"]) == ["0", "1"]
    assert {rows["maxItems"] for rows in schema["properties"].values()} == {4}


def test_a_vocabulary_is_part_of_the_schema_and_a_very_long_one_is_not() -> None:
    long = tuple(f"thing {number}" for number in range(300))
    with serving(lambda *_: phrases(["thing 7"])) as local:
        client = translator(local)
        assert client.translate([request(["?"], vocabulary=("thing 7", "bell"))])[0].frames == (("thing 7",),)
        assert client.translate([request(["?"], vocabulary=long)])[0].frames == (("thing 7",),)
    items = [f["response_format"]["json_schema"]["schema"]["properties"]["0"] for f in local.requests]

    assert items[0]["items"] == {"type": "string", "enum": ["thing 7", "bell"]}
    assert items[1]["items"] == {"type": "string"}


def test_identical_requests_are_sent_once_and_concurrency_is_limited() -> None:
    def slow(fields: Fields, number: int) -> Answer:
        time.sleep(0.05)
        return phrases(["dog"])

    with serving(slow) as local:
        clips = [request([f"dog {word}"]) for word in ("barking", "howling", "growling", "whining") * 3]
        translations = translator(local, concurrency=2).translate(clips)

    assert {t.frames for t in translations} == {(("dog",),)}
    assert (len(local.requests), local.max_in_flight) == (4, 2)


def test_tokens_are_counted_and_the_served_model_is_recorded() -> None:
    with serving(lambda *_: phrases(["dog"])) as local:
        client = translator(local)
        assert client.models == {"small": {"revision": None, "license": None, "server": local.url}}
        client.translate([DOG])

    assert (client.usage.requests, client.usage.prompt_tokens, client.usage.completion_tokens) == (1, 100, 10)
    assert client.models["small"]["revision"] == "small-1"


def test_a_server_may_omit_its_model_and_token_counts() -> None:
    bare = Answer(json.dumps({"choices": [{"message": {"content": '{"0": ["dog"]}'}}]}).encode())
    with serving(lambda *_: bare) as local:
        client = translator(local)
        assert client.translate([DOG])[0].frames == (("dog",),)

    assert (client.usage.requests, client.usage.prompt_tokens) == (1, 0)
    assert client.models["small"]["revision"] is None


def test_extra_fields_are_sent() -> None:
    with serving(lambda *_: phrases(["dog"])) as local:
        translator(local, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).translate([DOG])

    assert local.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}


# ------------------------------------------------------------------------------------------------------ rejected fields


@pytest.mark.parametrize(
    "refused",
    [
        refusal(400, "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."),
        refusal(422, "Unexpected fields in the request: {'response_format'}"),
        refusal(500, "Unsupported grammar"),
        refusal(500),  # without an explanation
        refusal(400, "bad request"),
    ],
)
def test_a_rejected_schema_is_dropped_for_good(refused: Answer) -> None:
    with serving(lambda fields, _: refused if "response_format" in fields else phrases(["dog"])) as local:
        client = translator(local)
        first, second = client.translate([DOG])[0], client.translate([request(["dog howling"])])[0]

    assert first.note is None and second.note is None
    assert ["response_format" in fields for fields in local.requests] == [True, False, False]


def test_an_accepted_schema_is_kept_after_a_transient_error() -> None:
    with serving(lambda _, number: refusal(500) if number == 2 else phrases(["dog"])) as local:
        client = translator(local)
        client.translate([DOG])
        assert client.translate([request(["dog howling"])])[0].note is None

    assert all("response_format" in fields for fields in local.requests) and len(local.requests) == 3


def test_the_schema_can_be_omitted_or_required() -> None:
    with serving(lambda fields, _: phrases(["dog"])) as local:
        translator(local, structured="none").translate([DOG])
    assert "response_format" not in local.requests[0]

    sentence = "takes no JSON schema; use the translator's option 'structured: auto'"
    unable = serving(lambda *_: refusal(400, "response_format is not supported"))
    with unable as local, pytest.raises(ModelError, match=sentence):
        translator(local, structured="json_schema").translate([DOG])


def test_reasoning_models_get_the_fields_that_they_require() -> None:
    def picky(fields: Fields, number: int) -> Answer:
        if "max_tokens" in fields:
            return refusal(400, "Unsupported parameter: 'max_tokens' is not supported with this model.")
        if "temperature" in fields:
            return refusal(400, "Unsupported value: 'temperature' does not support 0 with this model.")
        return phrases(["dog"])

    with serving(picky) as local:
        client = translator(local)
        client.translate([DOG])
        client.translate([request(["dog howling"])])

    assert len(local.requests) == 4
    assert local.requests[3]["max_completion_tokens"] == 256 and "temperature" not in local.requests[3]
    assert "response_format" in local.requests[3]


# ----------------------------------------------------------------------------------------------------- transient faults


@pytest.mark.faults
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_transient_error_leaves_no_trace(status: int) -> None:
    with serving(lambda _, number: refusal(status) if number == 1 else phrases(["dog"])) as local:
        translation = translator(local, structured="none").translate([DOG])[0]

    assert (translation.frames, translation.origin, translation.note) == ((("dog",),), "llm", None)
    assert len(local.requests) == 2


@pytest.mark.faults
@pytest.mark.parametrize("header", [{"Retry-After": "0.4"}, {"retry-after-ms": "400"}, {"Retry-After": "date"}])
def test_retry_after_holds_for_all_requests(header: dict[str, str]) -> None:
    if header == {"Retry-After": "date"}:
        header = {"Retry-After": formatdate(time.time() + 1.5, usegmt=True)}  # whole seconds: 0.5 to 1.5 s away
    least = 0.4

    def limited(fields: Fields, number: int) -> Answer:
        return refusal(429, "slow down", headers=header) if number == 1 else phrases(["dog"])

    with serving(limited) as local:
        clips = [request(["dog barking"]), request(["dog howling"])]
        translations = translator(local, concurrency=1).translate(clips)

    assert [t.note for t in translations] == [None, None]
    assert local.times[1] - local.times[0] >= least


def test_a_wait_beyond_the_total_timeout_is_skipped() -> None:
    with serving(lambda *_: refusal(429, "slow down", headers={"Retry-After": "3600"})) as local:
        started = time.monotonic()
        translations = translator(local).translate([DOG, request(["dog howling"])])

    assert time.monotonic() - started < 2
    assert all(fell_back(t, "requests a longer wait than the total time limit allows") for t in translations)
    assert len(local.requests) <= 2


def test_waits_grow_exponentially_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def record_sleep(seconds: float) -> None:
        waits.extend([seconds] if seconds else [])
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", record_sleep)
    with serving(lambda *_: refusal(503)) as local:
        translation = translator(local, max_retries=3, structured="none").translate([DOG])[0]

    assert fell_back(translation, "the server is overloaded (HTTP 503); attempts: 4")
    assert "failed once" in str(translation.note)  # without a second series of attempts
    assert len(local.requests) == 4 and len(waits) == 3
    assert all(0.5 <= wait / (0.02 * 2**i) <= 1.0 for i, wait in enumerate(waits)), "each twice the last, more or less"


# ----------------------------------------------------------------------------------------------------- unusable answers


def endless() -> Iterator[bytes]:
    while True:
        yield b" " * 65536


def dripping(seconds: float) -> Iterator[bytes]:
    yield b'{"choices": ['
    for _ in range(int(seconds / 0.1)):
        time.sleep(0.1)
        yield b" "


BROKEN = [
    (Answer(b"<!DOCTYPE html><p>Welcome to the proxy</p>"), chat_client.NO_COMPLETION),
    (Answer(phrases(["dog"]).body[:60]), chat_client.NO_COMPLETION),  # type: ignore[index]
    (Answer(b""), chat_client.NO_COMPLETION),
    (Answer(b"\xff\xfe\x00"), chat_client.NO_COMPLETION),
    (Answer(b"[" * 100_000), chat_client.NO_COMPLETION),
    (Answer(b'{"choices": []}'), chat_client.NO_COMPLETION),
    (Answer(b'{"error": "overloaded"}'), chat_client.NO_COMPLETION),
    (completion([{"type": "text", "text": "dog"}]), chat_client.NO_COMPLETION),  # type: ignore[arg-type]
    (completion(None, tool_calls=[]), errors.EMPTY),
    (completion(""), errors.EMPTY),
    (completion(" \n\t" * 2000, finish_reason="length"), errors.EMPTY),
    (completion('{"0": ["do', finish_reason="length"), answers.TRUNCATED),
    (completion("I'm sorry, but I can't help with that."), errors.REFUSED),
    (completion(None, refusal="I will not."), errors.REFUSED),
    (completion("", finish_reason="content_filter"), errors.REFUSED),
    (completion('{"0": ["/etc/passwd"]}'), answers.UNUSABLE),
]


@pytest.mark.faults
@pytest.mark.parametrize(("broken", "reason"), BROKEN)
def test_an_unusable_response_is_repeated_once_before_the_fallback(broken: Answer, reason: str) -> None:
    with serving(lambda *_: broken) as local:
        translation = translator(local).translate([DOG])[0]

    assert fell_back(translation, f"failed 2 times ({reason})")
    assert len(local.requests) == 2


def test_a_second_answer_may_be_usable() -> None:
    with serving(lambda _, number: completion("Woof!") if number == 1 else phrases(["dog"])) as local:
        translation = translator(local).translate([DOG])[0]

    assert (translation.origin, translation.attempts) == ("llm", 2)
    assert [len(fields["messages"]) for fields in local.requests] == [2, 4]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("flood", "reason"),
    [
        (Answer(b" " * 100_000_000), chat_client.OVERSIZED),
        (Answer(endless()), chat_client.OVERSIZED),
        (Answer(endless(), status=404), "does not serve the model"),
    ],
    ids=["100 MB", "endless", "endless error"],
)
@pytest.mark.alone
def test_only_a_limited_part_of_a_response_is_read(flood: Answer, reason: str) -> None:
    import tracemalloc

    with serving(lambda *_: flood) as local:
        tracemalloc.start()
        try:
            translation = translator(local, max_reprompts=0, timeout=10.0, total_timeout=10.0).translate([DOG])[0]
            assert fell_back(translation, reason)
        except ModelError as error:
            assert reason in str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()

    assert peak < 32 << 20


# ---------------------------------------------------------------------------------------------- servers without answers


@pytest.mark.faults
def test_any_slow_server_is_abandoned_within_the_total_timeout() -> None:
    def silent(fields: Fields, number: int) -> Answer:
        time.sleep(1.5)
        return phrases(["dog"])

    for script in (silent, lambda *_: Answer(dripping(3.0))):
        with serving(script) as local:
            started = time.monotonic()
            translation = translator(local, timeout=0.4, total_timeout=1.0, max_retries=8).translate([DOG])[0]
            took = time.monotonic() - started
        assert fell_back(translation, chat_client.NO_ANSWER)
        assert took < 2.5
        assert len(local.requests) in (2, 3)


@pytest.mark.faults
@pytest.mark.parametrize("headers", [{"Content-Length": "100000"}, {"Content-Length": "3"}])
def test_a_wrong_content_length(headers: dict[str, str]) -> None:
    with serving(lambda *_: Answer(phrases(["dog"]).body, headers=headers)) as local:
        translation = translator(local).translate([DOG])[0]

    assert fell_back(
        translation, chat_client.DISCONNECTED if headers["Content-Length"] != "3" else chat_client.NO_COMPLETION
    )
    assert len(local.requests) in (2, 3)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.faults
def test_without_a_server_the_lexicon_answers_with_a_note() -> None:
    translation = translator(f"http://127.0.0.1:{free_port()}/v1").translate([DOG])[0]

    assert fell_back(translation, "the server cannot be reached; attempts: 3")


def test_on_error_raise_makes_a_failing_server_an_error() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"

    with pytest.raises(ModelError, match=f"the server {url} gives no answer .*cannot be reached.*on_error: fallback"):
        translator(url, on_error="raise").translate([DOG])


@pytest.mark.long
@pytest.mark.faults
def test_ten_thousand_clips_with_a_server_that_hangs() -> None:
    def hangs(fields: Fields, number: int) -> Answer:
        time.sleep(3)
        return phrases(["dog"])

    clips = [request([f"dog barking {number}"]) for number in range(10_000)]
    with serving(hangs) as local:
        started = time.monotonic()
        translations = translator(local, timeout=0.3, total_timeout=0.3).translate(clips)
        took = time.monotonic() - started

    assert all(t.frames == (("dog",),) and t.origin == "lexicon" and t.note for t in translations)
    assert took < 60 and len(local.requests) <= 16
    assert server.CIRCUIT_OPEN in str(translations[-1].note)


@pytest.mark.faults
def test_a_recovered_server_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CIRCUIT_BREAKER_SECONDS", 0.3)
    with serving(lambda _, number: refusal(503) if number <= 3 else phrases(["bell"])) as local:
        client = translator(local, max_retries=0, structured="none")
        down = [client.translate([request([f"dog {n}"])])[0] for n in range(4)]
        assert len(local.requests) == 3 and server.CIRCUIT_OPEN in str(down[3].note)
        time.sleep(0.4)
        back = client.translate([DOG])[0]
    assert (back.frames, back.note) == ((("bell",),), None)


# ------------------------------------------------------------------------------------------- errors for the user to fix


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (refusal(401, f"Incorrect API key provided: {KEY}"), "does not accept the key in .* OPENAVS_TEST_KEY"),
        (refusal(403, "forbidden"), "the key may not use the model 'small'"),
        (refusal(404, "The model `small` does not exist"), "does not serve the model 'small' .HTTP 404.*'base_url'"),
        (refusal(400, "Server is pinned to 'large'; requested 'small'."), "does not serve the model 'small'"),
        (refusal(402, "pay"), "has no credit left"),
        (refusal(429, "quota", code="insufficient_quota"), "has no credit left"),
        (refusal(307, headers={"Location": "http://127.0.0.1:9/v1/chat/completions"}), "redirects elsewhere"),
    ],
)
def test_an_error_for_the_user_to_fix_is_raised_without_retries(answer: Answer, sentence: str) -> None:
    with serving(lambda *_: answer) as local:
        client = translator(local, api_key_env="OPENAVS_TEST_KEY", structured="none")
        with pytest.raises(ModelError, match=sentence) as raised:
            client.translate([DOG, request(["dog howling"])])

    assert KEY not in str(raised.value) and "\n" not in str(raised.value)
    assert 1 <= len(local.requests) <= 2  # both clips, once each


def test_a_missing_key_is_explained() -> None:
    sentence = r"requires a key \(HTTP 401\); put it into an environment .* 'api_key_env'"
    with serving(lambda *_: refusal(401, "no key")) as local, pytest.raises(ModelError, match=sentence):
        translator(local, structured="none").translate([DOG])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refusal(400, "no"), "the server refused the request (HTTP 400)"),
        (refusal(400, "This model's maximum context length is 4096 tokens"), errors.TOO_LONG),
        (refusal(413), errors.TOO_LONG),
    ],
)
def test_a_refused_request_is_not_repeated(answer: Answer, reason: str) -> None:
    with serving(lambda *_: answer) as local:
        translation = translator(local, structured="none").translate([DOG])[0]

    assert fell_back(translation, f"failed once ({reason})")
    assert len(local.requests) == 1


# ------------------------------------------------------------------------------------------------------ address and key


def test_the_key_comes_from_the_environment_and_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(lambda *_: refusal(400, f"your key {KEY} is unusual")) as local:
        client = translator(local, api_key_env="OPENAVS_TEST_KEY")
        translation = client.translate([DOG])[0]

    assert local.headers[0]["authorization"] == f"Bearer {KEY}"
    shown = (translation, client.models, vars(client), vars(client.server), client.server.endpoint)
    assert KEY not in caplog.text + repr(shown)
    assert "your key (key) is unusual" in caplog.text


def test_an_unprintable_key_is_reported_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAVS_TEST_KEY", f"{KEY}\nX-Header: 1")
    with pytest.raises(ModelError, match="OPENAVS_TEST_KEY holds unprintable text instead of a key") as raised:
        translator("http://localhost:1/v1", api_key_env="OPENAVS_TEST_KEY")
    assert KEY not in str(raised.value)


def test_a_key_for_openai_is_not_sent_to_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda *_: phrases(["dog"])) as local:
        translator(local).translate([DOG])

    assert KEY not in str(local.headers)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"api_key_env": "OPENAVS_NO_KEY"}, ModelError, "variable OPENAVS_NO_KEY, which should hold .* is not set"),
        ({"api_key_env": KEY}, InputError, "never the key itself"),
        ({"base_url": "https://user:word@host/v1"}, InputError, "holds more than an address"),
        ({"base_url": "https://host/v1?key=1"}, InputError, "holds more than an address"),
        ({"base_url": "localhost:8000/v1"}, InputError, "not the address of a server"),
        ({"base_url": "ftp://host"}, InputError, "not the address of a server"),
        ({"base_url": "http://host:99999/v1"}, InputError, "is not an address"),
        ({"base_url": "http://10.0.0.1/v1", "offline": True}, InputError, "--offline allows no other"),
        ({"base_url": "http://localhost.evil.org/v1", "offline": True}, InputError, "--offline allows no other"),
        ({"max_retries": -1}, InputError, "at least 0"),
        ({"concurrency": 0}, InputError, "at least 1"),
        ({"timeout": 0.0}, InputError, "seconds above 0"),
        ({"total_timeout": float("nan")}, InputError, "seconds above 0"),
    ],
)
def test_invalid_options_are_errors_of_one_sentence(
    options: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence) as raised:
        OpenAITranslator(model="small", **{"base_url": "http://localhost:1/v1", **options})
    assert "\n" not in str(raised.value) and KEY not in str(raised.value) and "word" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://127.0.0.9/v1", "http://[::1]:8000/v1"])
def test_offline_allows_a_server_on_this_machine(url: str) -> None:
    assert OpenAITranslator(model="small", base_url=url, offline=True).server.endpoint.loopback


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda *_: phrases(["dog"])) as local:
        assert translator(local).translate([DOG])[0].note is None


# ----------------------------------------------------------------------------------------------------- unusual requests


def test_unusual_captions_are_sent_cleaned() -> None:
    def counted(fields: Fields, number: int) -> Answer:
        text = fields["messages"][1]["content"]
        return phrases(*[["dog"]] * len(json.loads(text[text.index("[") :])))

    unusual = request(["dog " * 12_500], ["犬が吠える 🐕 \ud800 собака"], [""], ["dog"] * 10_000)
    changing = request(["dog barking"], ["a bark"]).frames
    unusual = Request(unusual.frames + changing * 65)
    with serving(counted) as local:
        translation = translator(local, max_runs=60).translate([unusual])[0]

    assert translation.note is None and len(translation.frames) == 134
    assert len(local.requests) == 3
    assert max(len(fields["messages"][1]["content"]) for fields in local.requests) < 10_000
    contents = [fields["messages"][1]["content"] for fields in local.requests]  # the parts arrive in any order
    assert any("犬が吠える 🐕 собака" in content for content in contents)


# ---------------------------------------------------------------------------------------------------------- in a recipe


def test_a_recipe_can_use_it_and_its_model_is_not_downloaded() -> None:
    recipe = load_recipe(
        "tiny", ["translator={use: openai, model: gpt-x, base_url: 'http://localhost:1/v1', max_retries: 2}"]
    )
    cls, options = Registry("translator").check("openai", recipe.translator.options, {"offline": True, "device": "cpu"})

    assert cls is OpenAITranslator
    assert options == {"model": "gpt-x", "base_url": "http://localhost:1/v1", "max_retries": 2, "offline": True}
    assert "translator" not in recipe.models()


def test_an_interrupt_cancels_the_requests_in_flight() -> None:
    def slow_first(fields: Fields, number: int) -> Answer:
        time.sleep(5 if number == 1 else 0)
        return phrases(["dog"])

    with serving(slow_first) as local:
        client = translator(local)
        interrupt = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        interrupt.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client.translate([DOG])
        assert time.monotonic() - started < 4
        assert client.translate([DOG])[0].note is None


def test_the_thread_of_a_client_ends_with_its_translator() -> None:
    others = set(threading.enumerate())
    with serving(lambda *_: phrases(["dog"])) as local:
        client = translator(local)
        client.translate([DOG])
        (thread,) = [thread for thread in set(threading.enumerate()) - others if thread.name == "chat-client"]
        del client
        gc.collect()
        thread.join(5)
        assert not thread.is_alive()


def test_a_client_can_be_closed_twice() -> None:
    client = chat_client.ChatClient(Endpoint("http://localhost:1/v1"), timeout=1.0, concurrency=1)
    assert client.run(asyncio.sleep(0, "slept")) == "slept" and client.alive
    for _ in range(2):
        client.close()
        assert not client.alive
