"""The audio language models say what the library's own processor and generate say, each sound being encoded once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
import transformers
from safetensors.torch import load_file, save_file

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.stages.captioners.audio_lm import PAPER_QUESTIONS, AudioLmCaptioner, one_line
from openavs.stages.captioners.base import Captioner
from openavs.structures.types import AudioWindow, Waveform
from tests import tiny_audio
from tests.tiny_audio import QWEN_TEMPLATE, RATE, SECONDS
from tests.tiny_models import make_clap

GREEDY: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 8}
MAKERS: dict[str, Callable[[Path], Path]] = {
    "qwen2-audio": tiny_audio.make_qwen2_audio,
    "audio-flamingo-3": tiny_audio.make_audio_flamingo,
    "audio-flamingo-next": tiny_audio.make_music_flamingo,
    "voxtral": tiny_audio.make_voxtral,
    "qwen2.5-omni": tiny_audio.make_omni_2_5,
    "qwen3-omni": tiny_audio.make_omni_3,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("audio-llm")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module", params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def qwen(folders: dict[str, Path]) -> Path:
    return folders["qwen2-audio"]


def load(folder: Path, **options: Any) -> AudioLmCaptioner:
    return AudioLmCaptioner(model=str(folder), max_new_tokens=8, device="cpu", dtype="float32", **options)


def tone(seconds: float, hertz: float, rate: int = RATE, start: float = 0.0) -> AudioWindow:
    """A tone in a little noise."""
    count = round(seconds * rate)
    noise = np.random.default_rng(round(hertz)).standard_normal(count) * 0.01
    samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(count) / rate) + noise
    return AudioWindow(Waveform(samples.astype(np.float32), rate), start, start + seconds)


WINDOWS = [tone(1.0, 200), tone(0.43, 3000), tone(1.6, 900), tone(0.2, 5000)]


def texts(captioner: AudioLmCaptioner, windows: list[AudioWindow]) -> list[list[str]]:
    return [[caption.text for caption in captions] for captions in captioner.caption(windows)]


# -------------------------------------------------------------------- the library's own words, one window, one question


@cache
def loaded(name: str, folder: Path) -> Any:
    return getattr(transformers, name).from_pretrained(folder)


def with_processor(folder: Path, model_class: str, processor_class: str, window: AudioWindow, question: str) -> str:
    """A direct call of the processor and `generate`, as the model's documentation has it."""
    processor, model = loaded(processor_class, folder), loaded(model_class, folder).eval()
    parts = [{"type": "audio", "audio": ""}, {"type": "text", "text": question}]
    if "Flamingo" in model_class:
        parts.reverse()
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[prompt], audio=[window.audio.samples], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        produced = model.generate(**inputs, **GREEDY)
    return str(processor.tokenizer.decode(produced[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def with_ids(folder: Path, model_class: str, prompt: Callable[[int], str], window: AudioWindow) -> str:
    """A direct call of `generate` where the processor needs packages that the tests do not have."""
    extractor, tokenizer = loaded("WhisperFeatureExtractor", folder), loaded("AutoTokenizer", folder)
    model = loaded(model_class, folder).eval()
    sound = extractor(
        window.audio.samples, sampling_rate=RATE, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    mask = sound["attention_mask"]
    ids = tokenizer(prompt(int(mask.sum())), add_special_tokens=False, return_tensors="pt")
    inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
    inputs["input_features"] = sound["input_features"]
    if "Voxtral" not in model_class:
        inputs["feature_attention_mask"] = mask
    with torch.no_grad():
        produced = model.generate(**inputs, **GREEDY)
    return str(tokenizer.decode(produced[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def library(kind: str, folder: Path, window: AudioWindow, question: str) -> str:
    if kind == "qwen2-audio":
        return with_processor(folder, "Qwen2AudioForConditionalGeneration", "Qwen2AudioProcessor", window, question)
    if kind == "audio-flamingo-3":
        model_class = "AudioFlamingo3ForConditionalGeneration"
        return with_processor(folder, model_class, "AudioFlamingo3Processor", window, question)
    if kind == "audio-flamingo-next":
        model_class = "MusicFlamingoForConditionalGeneration"
        return with_processor(folder, model_class, "MusicFlamingoProcessor", window, question)
    if kind == "voxtral":
        return with_ids(folder, "VoxtralForConditionalGeneration", voxtral_prompt(question), window)
    if kind == "qwen2.5-omni":
        from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import _get_feat_extract_output_lengths as count

        return with_ids(folder, "Qwen2_5OmniThinkerForConditionalGeneration", qwen_prompt(question, count), window)
    from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import _get_feat_extract_output_lengths as count

    return with_ids(folder, "Qwen3OmniMoeThinkerForConditionalGeneration", qwen_prompt(question, count), window)


def voxtral_prompt(question: str) -> Callable[[int], str]:
    places = tiny_audio.POSITIONS // 4  # 16 features a step, 64 a vector
    return lambda frames: f"<s>[INST][BEGIN_AUDIO]{'[AUDIO]' * places}{question}[/INST]"


def qwen_prompt(question: str, count: Callable[[int], int]) -> Callable[[int], str]:
    def prompt(frames: int) -> str:
        places = "<|AUDIO|>" * count(frames)
        return f"<|im_start|> user <|audio_bos|>{places}<|audio_eos|> {question} <|im_end|> <|im_start|> assistant "

    return prompt


def test_captions_equal_those_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    ours = texts(load(folders[kind]), WINDOWS)
    for window, captions in zip(WINDOWS, ours, strict=True):
        assert captions == [library(kind, folders[kind], window, question) for question in PAPER_QUESTIONS]
    assert len({text for captions in ours for text in captions}) > 6  # and they do differ


def test_a_sound_is_encoded_once_for_all_questions(kind: str, folders: dict[str, Path]) -> None:
    windows = [tone(1.0, hertz) for hertz in (200, 3000, 900, 5000)]
    captioner = load(folders[kind], batch_size=1)
    passes: list[int] = []
    captioner.model.model.audio_tower.register_forward_hook(lambda *_: passes.append(1))
    captioner.caption(windows)
    assert len(passes) == len(windows)  # not times three
    captioner.batch_size = 8
    captioner.caption(windows)
    assert len(passes) == len(windows) + 1  # all of them together


def test_a_window_does_not_depend_on_its_batch(kind: str, folders: dict[str, Path]) -> None:
    together = texts(load(folders[kind], batch_size=8), WINDOWS)
    for batch_size in (1, 3):
        assert texts(load(folders[kind], batch_size=batch_size), WINDOWS) == together
    assert texts(load(folders[kind]), WINDOWS[::-1]) == together[::-1]


def test_a_question_does_not_depend_on_the_others(kind: str, folders: dict[str, Path]) -> None:
    alone = texts(load(folders[kind], questions=["Generate metadata"]), WINDOWS)
    assert [captions[1] for captions in texts(load(folders[kind]), WINDOWS)] == [captions[0] for captions in alone]


def test_very_short_sounds_have_captions(kind: str, folders: dict[str, Path]) -> None:
    answers = load(folders[kind]).caption([tone(0.001, 400), tone(0.02, 400), tone(1.0, 400)])
    assert [len(captions) for captions in answers] == [3, 3, 3]


# ------------------------------------------------------------------------------------------------------------ the sound


def test_other_rates_are_resampled(qwen: Path) -> None:
    window = tone(0.8, 700, rate=44_100)
    at_rate = AudioWindow(Waveform(soxr.resample(window.audio.samples, 44_100, RATE), RATE), 0.0, 0.8)
    captioner = load(qwen)
    assert captioner.caption([window]) == captioner.caption([at_rate])


def test_long_windows_are_cropped_to_their_center(qwen: Path) -> None:
    parts = [tone(SECONDS, hertz).audio.samples for hertz in (200, 3000, 900)]
    captioner = load(qwen)
    long = AudioWindow(Waveform(np.concatenate(parts), RATE), 0.0, 3.0 * SECONDS)
    assert texts(captioner, [long]) == texts(captioner, [AudioWindow(Waveform(parts[1], RATE), 0.0, SECONDS)])
    assert texts(captioner, [long]) != texts(captioner, [AudioWindow(Waveform(parts[0], RATE), 0.0, SECONDS)])


def test_no_windows_and_windows_without_samples(qwen: Path) -> None:
    captioner = load(qwen)
    empty = AudioWindow(Waveform(np.zeros(0, np.float32), 44_100), 0.0, 0.0)
    assert captioner.caption([]) == []
    assert [len(captions) for captions in captioner.caption([empty, tone(1.0, 200), empty])] == [0, 3, 0]


# ------------------------------------------------------------------------------------------------------- what comes out


def test_captions_have_times_and_questions_and_no_score(qwen: Path) -> None:
    [captions] = load(qwen).caption([tone(1.0, 200, start=4.0)])
    assert {(caption.start, caption.end, caption.score) for caption in captions} == {(4.0, 5.0, None)}
    assert tuple(caption.question for caption in captions) == PAPER_QUESTIONS


def test_a_16_bit_checkpoint_stays_in_16_bits_on_a_cpu(qwen: Path, tmp_path: Path) -> None:
    half = shutil.copytree(qwen, tmp_path / "half")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", {"format": "pt"})
    captioner = AudioLmCaptioner(model=str(half), device="cpu", max_new_tokens=4)
    assert captioner.model.dtype == captioner.dtype == torch.bfloat16
    assert AudioLmCaptioner(model=str(qwen), device="cpu").model.dtype == torch.float32
    captioner.caption([tone(1.0, 440.0)])


def test_texts_are_one_line_of_bounded_length() -> None:
    assert one_line("  a dog \n\n barks\tloudly ") == "a dog barks loudly"
    assert one_line("a dog barks", 7) == "a dog"
    assert one_line("a dog barks", 5) == "a dog"
    assert one_line("bow-wow-wow", 7) == "bow-wow"
    assert one_line("\n") == ""


def test_answers_without_words_are_left_out(qwen: Path) -> None:
    captioner = load(qwen)
    ends = torch.zeros_like(captioner.model.lm_head.weight)  # all logits alike: the first token, which is padding
    captioner.model.lm_head.weight.copy_(ends)
    assert captioner.caption([tone(1.0, 200)]) == [[]]


def test_it_is_a_captioner_and_records_its_model(qwen: Path) -> None:
    captioner = load(qwen)
    assert isinstance(captioner, Captioner)
    assert captioner.models == {str(qwen): {"revision": None, "license": None, "path": str(qwen)}}


def test_nonfinite_vectors_are_an_error_that_names_the_window(qwen: Path) -> None:
    captioner = load(qwen)
    captioner.model.model.multi_modal_projector.linear.bias.fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite for the window from 2 to 3 s"):
        captioner.caption([tone(1.0, 200, start=2.0)])


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    "options",
    [
        {"questions": []},
        {"questions": ["What is this?", "  "]},
        {"questions": ["What is this?", "What is this?"]},
        {"batch_size": 0},
    ],
)
def test_options_out_of_range_are_refused(qwen: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"audio-llm: .*{next(iter(options))}"):
        load(qwen, **options)


def test_an_unsupported_model_is_refused_with_the_supported_kinds(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'clap' model.*qwen2_audio, audioflamingo3, musicflamingo, voxtral"):
        load(make_clap(tmp_path / "clap"))


def test_a_question_with_the_audio_placeholder_is_refused(qwen: Path) -> None:
    with pytest.raises(ModelError, match="has 2 places for the audio"):
        load(qwen, questions=["What is <|AUDIO|> ?"])


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = tiny_audio.make_omni_2_5(tmp_path / "omni")
    (folder / "chat_template.json").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load(folder)


def test_qwen2_audio_without_a_template_gets_the_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_audio.make_qwen2_audio(tmp_path / "qwen")
    (folder / "chat_template.jinja").unlink()
    by_library = load(folder)
    monkeypatch.setattr(transformers.Qwen2AudioProcessor, "default_chat_template", None)
    by_family = load(folder)
    question = [{"role": "user", "content": [{"type": "audio", "audio": ""}, {"type": "text", "text": "What's that?"}]}]
    rendered = [
        reader.tokenizer.apply_chat_template(
            question, chat_template=reader.template, tokenize=False, add_generation_prompt=True
        )
        for reader in (by_library.processor, by_family.processor)
    ]

    assert by_library.processor.template != by_family.processor.template
    assert rendered[0] == rendered[1] and rendered[0].endswith("<|im_start|>assistant\n")
    assert texts(by_family, WINDOWS) == texts(by_library, WINDOWS)


def test_the_thinker_of_a_whole_omni_checkpoint_is_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    """As the hub has it: the thinker's tensors below a prefix, its configuration within a larger one."""
    thinker, whole = folders["qwen2.5-omni"], tmp_path / "whole"
    whole.mkdir()
    for path in thinker.iterdir():
        if path.suffix == ".json":
            (whole / path.name).write_bytes(path.read_bytes())
    config = json.loads((thinker / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": config}))
    tensors = {f"thinker.{name}": value for name, value in load_file(thinker / "model.safetensors").items()}
    save_file(tensors, whole / "model.safetensors", {"format": "pt"})
    assert texts(load(whole), WINDOWS) == texts(load(thinker), WINDOWS)


def test_the_tokenizer_file_of_mistral_is_supported(tmp_path: Path) -> None:
    """As Voxtral's checkpoints have it; no package of Mistral's is needed."""
    folder = tiny_audio.make_voxtral(tmp_path / "voxtral", tekken=True)
    [captions] = texts(load(folder), WINDOWS[:1])
    for text, question in zip(captions, PAPER_QUESTIONS, strict=True):
        library = with_ids(folder, "VoxtralForConditionalGeneration", voxtral_prompt(question), WINDOWS[0])
        assert text == one_line(library)


def test_the_template_of_the_tokenizer_is_the_fallback(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny_audio.make_omni_2_5(tmp_path / "omni")
    (folder / "chat_template.json").rename(folder / "unused.txt")
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    assert texts(load(folder), WINDOWS) == texts(load(folders["qwen2.5-omni"]), WINDOWS)
