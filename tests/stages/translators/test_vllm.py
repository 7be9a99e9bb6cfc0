"""The vLLM adapter: its calls against the package's signatures, its behavior on a stand-in and, on a GPU, for real.

vLLM runs on GPUs alone and does not install beside everything else here, so that the signatures are recorded from its
source releases (`vllm_signatures.json`) and, where the package is installed, read from it.
"""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openavs.errors import InputError, ModelError
from openavs.models.chat_api.endpoint import TOO_LONG
from openavs.models.hub import resolve
from openavs.stages.translators import vllm as vllm_engine
from openavs.stages.translators.base import Request
from openavs.stages.translators.llm import LlmTranslator
from openavs.stages.translators.vllm import VllmTranslator, engine_options, sampling_options
from tests.stages.translators.captions import request
from tests.stages.translators.vllm_signatures import recorded, signatures
from tests.tiny_lms import NO_SYSTEM, make_lm

TINY = "openavs:tiny/lm"
CLIPS = [
    request([("dog barking", 0.81)], [], [("dog barking", 0.74), ("bell ringing", 0.4)]),
    request([("cat meowing", 0.6)]),
    request([("bell ringing", 0.9)], [("bus idling", 0.5), ("flute playing", 0.45)]),
]


def installed() -> Path | None:
    """The folder of the installed package, found without importing it."""
    spec = find_spec("vllm")
    return Path(spec.origin).parent if spec and spec.origin else None


@pytest.fixture(params=[*recorded(), "installed"])
def surface(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    if request.param != "installed":
        return recorded()[request.param]
    folder = installed()
    if folder is None:
        pytest.skip("vllm is not installed (needs a GPU); the recorded signatures were checked")
    return signatures(folder)


# --------------------------------------------------------------------------------------------- calls against signatures


def calls() -> dict[str, list[ast.Call]]:
    """Every call in the adapter of something of vLLM's, by its last name."""
    found: dict[str, list[ast.Call]] = {"LLM": [], "generate": [], "SamplingParams": [], "StructuredOutputsParams": []}
    for node in ast.walk(ast.parse(inspect.getsource(vllm_engine))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in found:
            found[node.func.attr].append(node)
    return found


def test_the_arguments_of_the_engine_exist(surface: dict[str, list[str]]) -> None:
    options = engine_options("x", dtype="bfloat16", max_model_len=9, gpu_memory_utilization=0.4, tensor_parallel=1)

    assert set(options) <= {*surface["LLM"], *surface["EngineArgs"]}
    assert options["trust_remote_code"] is False and options["load_format"] == "safetensors"
    assert options["enable_prefix_caching"] is True


def test_calls_match_the_signatures(surface: dict[str, list[str]]) -> None:
    found = calls()
    assert [len(made) for made in found.values()] == [1, 1, 2, 1]
    for name, made in found.items():
        takes = surface["LLM.generate" if name == "generate" else name]
        for call in made:
            assert len(call.args) <= len(takes)
            assert {keyword.arg for keyword in call.keywords if keyword.arg} <= set(takes)
    assert surface["LLM.generate"][:2] == ["prompts", "sampling_params"]
    assert set(sampling_options(1)) <= set(surface["SamplingParams"])


def test_fields_that_are_read_exist(surface: dict[str, list[str]]) -> None:
    assert "prompt_token_ids" in surface["TokensPrompt"]
    assert "text" in surface["CompletionOutput"]


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)

    with pytest.raises(InputError, match=r"pip install \"openavs\[vllm\]\", or run `vllm serve`"):
        VllmTranslator(model=TINY)


# ---------------------------------------------------------------------------- behavior, on a stand-in with real answers


class StandIn:
    """Has the calls of the package that the adapter makes, and answers with the real tiny model, one at a time."""

    def __init__(self, llm: LlmTranslator, context: int = 512) -> None:
        self.llm, self.made, self.sampled = llm, dict[str, Any](), list[Any]()
        self.model_config = SimpleNamespace(max_model_len=context)

    def LLM(self, **options: Any) -> StandIn:
        self.made = options
        return self

    def SamplingParams(self, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(**options)

    def generate(self, prompts: list[Any], sampling_params: list[Any], *, use_tqdm: bool = True) -> list[Any]:
        self.sampled = sampling_params
        texts = [
            self.llm._generate([prompt["prompt_token_ids"]], sampling.max_tokens)[0]
            for prompt, sampling in zip(prompts, sampling_params, strict=True)
        ]
        return [SimpleNamespace(outputs=[SimpleNamespace(text=text)]) for text in texts]


def build(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn, model: str = TINY, **options: Any) -> VllmTranslator:
    monkeypatch.setattr(vllm_engine, "_package", lambda: stand_in)
    settings: dict[str, Any] = {"prompt": "tiny", "structured": False, "max_new_tokens": 160, "offline": True} | options
    return VllmTranslator(model=model, **settings)


def local(model: str = TINY, **options: Any) -> LlmTranslator:
    return LlmTranslator(model=model, prompt="tiny", max_new_tokens=160, device="cpu", dtype="float32", **options)


def test_the_engine_gets_the_same_prompts_as_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = local()
    engine = StandIn(llm)
    translations = build(monkeypatch, engine).translate(CLIPS)

    assert translations == llm.translate(CLIPS)
    assert translations[0].frames == (("dog",), (), ("dog", "bell"))
    assert {sampling.temperature for sampling in engine.sampled} == {0.0}


def test_a_template_without_a_system_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = str(make_lm(tmp_path / "lm", template=NO_SYSTEM))
    llm = local(folder)

    assert build(monkeypatch, StandIn(llm), folder).translate(CLIPS) == llm.translate(CLIPS)


def test_a_prompt_that_is_too_long_does_not_fail_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Request(request(["dog barking", "bell ringing", "cat meowing", "bird chirping"]).frames * 60)
    engine = StandIn(local())
    translations = build(monkeypatch, engine)
    [alone] = translations.translate([long])
    assert alone.origin == "lexicon" and engine.sampled == [], "the engine was not translations for nothing"
    short, cut = translations.translate([CLIPS[1], long])

    assert short.frames == (("cat",),) and short.note is None
    assert cut.origin == "lexicon" and f"failed once ({TOO_LONG})" in str(cut.note)


def test_answers_are_constrained_to_the_schema_of_their_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", SimpleNamespace(StructuredOutputsParams=SimpleNamespace))
    engine = StandIn(local())
    build(monkeypatch, engine, structured=True).translate(CLIPS)
    frames = [sampling.structured_outputs.json["properties"]["frames"] for sampling in engine.sampled]

    assert [(rows["minItems"], rows["maxItems"]) for rows in frames] == [(3, 3), (1, 1), (2, 2)]


def test_schemas_by_runs_have_their_keys_and_maximum_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Brief(StandIn):
        """Answers the first run only; the tiny model does not read a prompt of this length."""

        def generate(self, prompts: list[Any], sampling_params: list[Any], *, use_tqdm: bool = True) -> list[Any]:
            self.sampled = sampling_params
            return [SimpleNamespace(outputs=[SimpleNamespace(text='{"0": ["hound"]}')]) for _ in prompts]

    monkeypatch.setitem(sys.modules, "vllm.sampling_params", SimpleNamespace(StructuredOutputsParams=SimpleNamespace))
    engine = Brief(local(), context=8192)
    translations = build(monkeypatch, engine, structured=True, prompt="default", max_new_tokens=None).translate(CLIPS)

    assert [sampling.structured_outputs.json["required"] for sampling in engine.sampled] == [
        ["0", "1"],
        ["0"],
        ["0", "1"],
    ]
    assert {sampling.max_tokens for sampling in engine.sampled} == {256}
    assert translations[0].frames == (("hound",), (), ("dog", "bell"))
    assert translations[0].origins == ("llm", "llm", "lexicon")


def test_an_engine_that_does_not_start_is_one_error_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(StandIn):
        def LLM(self, **options: Any) -> StandIn:
            raise ValueError("Free memory on device is less than desired\nTraceback")

    with pytest.raises(
        ModelError, match=r"vLLM cannot load the model .*Free memory .*lower 'gpu_memory_util"
    ) as raised:
        build(monkeypatch, Broken(local()))
    assert "\n" not in str(raised.value)


def test_the_context_is_8192_tokens_or_that_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engine keeps room for one sequence of the longest length, which for Qwen3-4B is 39 GB."""
    folder = shutil.copytree(resolve(TINY).path, tmp_path / "lm")
    config = json.loads((folder / "config.json").read_text())
    for reads, expected in ((262_144, 8192), (2048, 2048)):
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": reads}))
        engine = StandIn(local())
        build(monkeypatch, engine, str(folder))
        assert engine.made["max_model_len"] == expected


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StandIn(local())
    build(monkeypatch, engine, max_model_len=300, tensor_parallel=2, engine={"enforce_eager": True})

    assert engine.made["max_model_len"] == 300 and engine.made["tensor_parallel_size"] == 2
    assert engine.made["enforce_eager"] is True
    with pytest.raises(InputError, match="'engine' may not set load_format, trust_remote_code"):
        build(monkeypatch, engine, engine={"trust_remote_code": True, "load_format": "pt"})
    for wrong in ({"tensor_parallel": 0}, {"max_model_len": 0}, {"gpu_memory_utilization": 1.5}, {"max_new_tokens": 0}):
        with pytest.raises(InputError, match=r"at least 1|above 0"):
            build(monkeypatch, engine, **wrong)


# ------------------------------------------------------------------------------------------------------------- for real


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("structured", [False, True])
def test_the_real_engine_answers_like_llm(structured: bool) -> None:
    pytest.importorskip("vllm", reason='vllm is not installed: pip install "openavs[vllm]"')
    options: dict[str, Any] = {"prompt": "tiny", "max_new_tokens": 160, "dtype": "float32", "offline": True}
    engine = VllmTranslator(
        model=TINY, structured=structured, gpu_memory_utilization=0.2, engine={"enforce_eager": True}, **options
    )
    expected = LlmTranslator(model=TINY, device="cuda", **options).translate(CLIPS)

    assert [t.frames for t in engine.translate(CLIPS)] == [t.frames for t in expected]
