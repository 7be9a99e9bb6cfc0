"""The local language model: real classes at tiny size, saved and loaded again, equal to the library's own generate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openavs.errors import InputError, ModelError
from openavs.models.chat_api.endpoint import TOO_LONG, ParseError
from openavs.models.generation import render_chat, token_budget
from openavs.stages.translators.chat import ChatRequest
from openavs.stages.translators.llm import LlmTranslator, tokenize_chat
from openavs.stages.translators.parsing import AnswerSchema
from tests.stages.translators.captions import request
from tests.tiny_lms import CHATML, NO_SYSTEM, make_lm


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / request.param, kind=request.param)


def translator(folder: Path, **options: object) -> LlmTranslator:
    settings = {"prompt": "tiny", "max_new_tokens": 24, "device": "cpu", "dtype": "float32", "offline": True} | options
    return LlmTranslator(model=str(folder), **settings)  # type: ignore[arg-type]


def conversations() -> list[list[dict[str, str]]]:
    lines = ["0: dog barking 0.81", "0: bell ringing 0.40 | cat meowing 0.30\n1: -\n2: dog barking", "0: -", "0: cat"]
    return [[{"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": line}] for line in lines]


def ask(llm: LlmTranslator, conversations: list[list[dict[str, str]]]) -> list[str | ParseError]:
    return llm._chat(
        [ChatRequest(conversation, AnswerSchema(1), llm.max_new_tokens or 24) for conversation in conversations]
    )


def direct(folder: Path, conversation: list[dict[str, str]], new: int) -> str:
    """The library's own way, one conversation at a time, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids = model.generate(
            **inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=new, pad_token_id=tokenizer.eos_token_id
        )
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_answers_equal_those_of_transformers(folder: Path) -> None:
    answers = ask(translator(folder), conversations())

    assert answers == [direct(folder, conversation, 24) for conversation in conversations()]
    assert len(set(answers)) > 1  # the questions matter


def test_a_16_bit_checkpoint_stays_in_16_bits_on_a_cpu(folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(folder).save_pretrained(half)
    assert translator(half, dtype="auto").model.dtype == torch.bfloat16
    assert translator(half, dtype="float32").model.dtype == torch.float32
    assert translator(folder, dtype="auto").model.dtype == torch.float32
    assert all(isinstance(answer, str) for answer in ask(translator(half, dtype="auto"), conversations()))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_answer_does_not_depend_on_its_batch(folder: Path, batch_size: int) -> None:
    together = ask(translator(folder), conversations())

    assert ask(translator(folder, batch_size=batch_size), conversations()) == together
    assert ask(translator(folder), conversations()[::-1]) == together[::-1]


def test_maximum_tokens_are_those_of_the_schema_unless_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[int] = []
    monkeypatch.setattr(LlmTranslator, "_generate", lambda self, tokens, new: rooms.append(new) or [""] * len(tokens))
    for limit in (None, 24):
        llm = translator(folder, max_new_tokens=limit, max_reprompts=0)
        llm.model.config.max_position_embeddings = 100_000
        llm.translate([request(["dog"]), request(*[["dog"]] * 12)])

    assert rooms == [256, 1024, 24]


def test_meaningless_answers_fall_back_to_the_lexicon(folder: Path) -> None:
    llm = translator(folder)
    translation = llm.translate([request(["dog barking"], [])])[0]

    assert (translation.frames, translation.origin, translation.attempts) == ((("dog",), ()), "lexicon", 2)
    assert translation.note is not None and "the language model failed 2 times" in translation.note
    assert llm.models == {str(folder): {"revision": None, "license": None, "path": str(folder)}}


def test_generation_stops_at_the_end_of_the_answer(tmp_path: Path) -> None:
    llm = translator(make_lm(tmp_path / "lm"), max_new_tokens=400)
    end = llm.tokenizer.eos_token_id
    with torch.no_grad():  # a model that always says the same word and then ends its answer
        llm.model.lm_head.weight.zero_()
        llm.model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(llm.tokenizer)))
        llm.model.lm_head.bias[end] = 1.0

    assert ask(llm, conversations()) == [""] * 4


def test_a_tokenizer_without_padding_and_a_template_without_system_turns(tmp_path: Path) -> None:
    with_all = translator(make_lm(tmp_path / "with"))
    without = translator(make_lm(tmp_path / "without", template=NO_SYSTEM, pad=False))
    merged = [[{"role": "user", "content": f"{s['content']}\n\n{u['content']}"}] for s, u in conversations()]

    assert without.tokenizer.pad_token is not None
    assert ask(without, conversations()) == ask(with_all, merged)


def test_thinking_is_turned_off(tmp_path: Path) -> None:
    thinks = CHATML.replace("assistant {% endif %}", "assistant {% if enable_thinking %}with{% endif %}{% endif %}")
    llm = translator(make_lm(tmp_path / "lm", template=thinks))

    assert render_chat(llm.tokenizer, conversations()[0]).endswith("assistant ")


def test_prompts_longer_than_the_context_are_not_sent(folder: Path) -> None:
    long = [{"role": "user", "content": "dog " * 600}]
    answers = ask(translator(folder), [conversations()[0], long])

    assert isinstance(answers[0], str)
    assert isinstance(answers[1], ParseError) and answers[1].reason == TOO_LONG
    translation = translator(folder, max_frames=100).translate([request(*[["dog barking"]] * 90)])[0]
    assert translation.frames == (("dog",),) * 90 and TOO_LONG in str(translation.note)


def test_maximum_tokens_depend_on_the_context_and_not_on_the_batch(tmp_path: Path) -> None:
    llm = translator(make_lm(tmp_path / "lm"), max_new_tokens=100)
    shortest, *_, longest = sorted(len(tokenize_chat(llm.tokenizer, conversation)) for conversation in conversations())
    llm.model.config.max_position_embeddings = shortest + 100
    answers = ask(llm, conversations())

    assert [token_budget(shortest + more, shortest + 100, 100) for more in (0, 1, 36, 37)] == [100, 64, 64, 0]
    assert shortest < longest <= shortest + 36
    assert answers == [ask(llm, [conversation])[0] for conversation in conversations()]


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        translator(make_lm(tmp_path / "base", template=None))


def test_a_broken_chat_template_is_one_sentence(tmp_path: Path) -> None:
    llm = translator(make_lm(tmp_path / "lm", template="{{ raise_exception('never') }}"))

    with pytest.raises(ModelError, match="chat template fails"):
        llm.translate([request(["dog"])])


@pytest.mark.parametrize("option", ["max_new_tokens", "batch_size"])
def test_options_out_of_range(option: str, folder: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        translator(folder, **{option: 0})
