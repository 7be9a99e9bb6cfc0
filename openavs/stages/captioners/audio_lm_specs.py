"""Differences between the audio language models of transformers: classes, prompts and audio encoders.

All of them have the same structure: a Whisper-like encoder and a projector turn audio into vectors that replace a
placeholder token in the language model's input. `MODEL_SPECS` has one entry per architecture.

Adaptations to the library: the Omni processors cannot be loaded without torchvision, so their tokenizer, feature
extractor and chat template are loaded one by one; Voxtral's chat template is in another package, so its few control
tokens are written out; Qwen2-Audio has no method for its audio vectors, and its encoder needs a mask for the end of the
sound; Audio Flamingo Next (the class of Music Flamingo) rotates each vector by its time, for which it wants the token
ids of a prompt; Qwen3-Omni pads a batch's last chunks to the longest of them without a mask, which changes the last
vectors of shorter sounds, so only sounds of one length share a batch.

Gemma 3n and the small Gemma 4 do not fit: their layers also read an embedding of each token id, which vectors lack.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from openavs.errors import ModelError
from openavs.models.hub import ResolvedModel, load_processor

Vectors = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]  # model, mel [B, M, T], mask [B, T] -> [sum(n), D]
Count = Callable[[int, Any], int]  # frames of the sound, audio config -> vectors


@dataclass(frozen=True)
class AudioModelSpec:
    """One architecture of audio language models.

    Attributes:
        model_class: name of the class in transformers.
        vectors: runs the audio encoder on a batch and returns the valid vectors of all sounds, concatenated.
        count: returns the number of vectors for a number of mel frames.
        processor_class: name of the processor's class; None if the processor cannot be used.
        text_first: True if the model was trained with the question before the audio.
        chat: True if a chat template makes the prompt, False for the fixed tokens of Voxtral.
        template: chat template for checkpoints without one.
        brackets: tokens that the library's processor writes before and after the audio; none if empty.
    """

    model_class: str
    vectors: Vectors
    count: Count
    processor_class: str | None = None
    text_first: bool = False
    chat: bool = True
    template: str | None = None
    brackets: tuple[str, str] | tuple[()] = ()


@dataclass(frozen=True)
class AudioProcessor:
    """Feature extractor, tokenizer and chat template of a model."""

    extractor: Any
    tokenizer: Any
    template: str | None


# ---------------------------------------------------------------------------------------------------- sounds to vectors


def _pooled_twice(frames: int, config: Any) -> int:
    """A convolution of stride 2 that pads, then a pooling of 2 that does not."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _chunks_halved_thrice(frames: int, config: Any) -> int:
    """Three convolutions of stride 2 on each chunk of two windows by itself."""
    chunk = 2 * int(config.n_window)
    return frames // chunk * _halved_thrice(chunk) + _halved_thrice(frames % chunk)


def _halved_thrice(frames: int) -> int:
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames


def _whole_length(frames: int, config: Any) -> int:
    """Voxtral encodes silence up to 30 s; its projector merges several encoder frames to one vector."""
    return int(config.max_source_positions * config.hidden_size // config.intermediate_size)


def _qwen2_audio(model: Any, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    frames = (mask.sum(-1) - 1) // 2 + 1  # after the convolution
    steps = torch.arange((features.shape[-1] - 2) // 2 + 1, device=features.device)
    padding = (steps[None] >= frames[:, None])[:, None, None, :].expand(-1, 1, len(steps), -1)
    attention = torch.zeros(padding.shape, dtype=features.dtype, device=features.device)
    attention = attention.masked_fill(padding, torch.finfo(features.dtype).min)
    encoded = model.model.audio_tower(features, attention_mask=attention).last_hidden_state
    vectors = model.model.multi_modal_projector(encoded)
    valid = torch.arange(vectors.shape[1], device=vectors.device)[None] < ((frames - 2) // 2 + 1)[:, None]
    flat: torch.Tensor = vectors[valid]
    return flat


def _audio_flamingo(model: Any, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _flat(model.get_audio_features(features, mask).pooler_output)


def _music_flamingo(model: Any, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    places = ((mask.sum(-1) - 1) // 2 - 1) // 2 + 1
    steps = torch.arange(int(places.max()), device=features.device)
    ids = torch.where(steps < places[:, None], int(model.config.audio_token_id), -1)
    return _flat(model.get_audio_features(features, mask, ids).pooler_output)


def _voxtral(model: Any, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _flat(model.get_audio_features(features).pooler_output)


def _omni(model: Any, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _flat(model.get_audio_features(features, feature_attention_mask=mask).last_hidden_state)


def _omni_by_length(model: Any, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    frames = mask.sum(-1)
    parts: dict[int, torch.Tensor] = {}
    for length in set(frames.tolist()):
        [rows] = torch.where(frames == length)
        vectors = _omni(model, features[rows], mask[rows])
        parts |= zip(rows.tolist(), vectors.chunk(len(rows)), strict=True)
    return torch.cat([parts[row] for row in range(len(frames))])


def _flat(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.reshape(-1, vectors.shape[-1])


# --------------------------------------------------------------------------------------------------------------- specs

# The checkpoint on the hub has no chat template. The library's processor has this one as a temporary default; here it
# is limited to one question about one sound.
_QWEN2_AUDIO_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "{% for part in messages[0].content %}"
    "{% if part.type == 'audio' %}Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_OMNI_2_5 = AudioModelSpec("Qwen2_5OmniThinkerForConditionalGeneration", _omni, _pooled_twice)
_OMNI_3 = AudioModelSpec("Qwen3OmniMoeThinkerForConditionalGeneration", _omni_by_length, _chunks_halved_thrice)

MODEL_SPECS: dict[str, AudioModelSpec] = {
    "qwen2_audio": AudioModelSpec(
        "Qwen2AudioForConditionalGeneration",
        _qwen2_audio,
        _pooled_twice,
        processor_class="Qwen2AudioProcessor",
        template=_QWEN2_AUDIO_TEMPLATE,
    ),
    "audioflamingo3": AudioModelSpec(
        "AudioFlamingo3ForConditionalGeneration",
        _audio_flamingo,
        _pooled_twice,
        processor_class="AudioFlamingo3Processor",
        text_first=True,
    ),
    "musicflamingo": AudioModelSpec(
        "MusicFlamingoForConditionalGeneration",
        _music_flamingo,
        _pooled_twice,
        processor_class="MusicFlamingoProcessor",
        text_first=True,
        brackets=("<|sound_bos|>", "<|sound_eos|>"),
    ),
    "voxtral": AudioModelSpec("VoxtralForConditionalGeneration", _voxtral, _whole_length, chat=False),
    "qwen2_5_omni": _OMNI_2_5,
    "qwen2_5_omni_thinker": _OMNI_2_5,
    "qwen3_omni_moe": _OMNI_3,
    "qwen3_omni_moe_thinker": _OMNI_3,
}


def find_model_spec(resolved: ResolvedModel) -> AudioModelSpec:
    """Return the spec for the architecture of a model's folder.

    Raises:
        ModelError: the architecture is not supported; the message names those that are.
    """
    try:
        kind = json.loads((resolved.path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the model '{resolved.ref}' has a config.json without a model_type; download it again"
        ) from error
    if kind not in MODEL_SPECS:
        raise ModelError(
            f"the model '{resolved.ref}' is a '{kind}' model, which audio-llm does not support; "
            f"give one of these: {', '.join(MODEL_SPECS)}"
        )
    return MODEL_SPECS[kind]


def load_audio_processor(spec: AudioModelSpec, resolved: ResolvedModel) -> AudioProcessor:
    """Load feature extractor, tokenizer and chat template from a model's folder.

    Raises:
        ModelError: a file is missing or of another kind.
    """
    if spec.processor_class:
        whole: Any = load_processor(getattr(transformers, spec.processor_class), resolved)
        return AudioProcessor(whole.feature_extractor, whole.tokenizer, whole.chat_template or spec.template)
    extractor = load_processor(transformers.WhisperFeatureExtractor, resolved)
    tokenizer: Any = load_processor(transformers.AutoTokenizer, resolved)
    template = (_template_file(resolved.path) or tokenizer.chat_template) if spec.chat else None
    return AudioProcessor(extractor, tokenizer, template)


def _template_file(folder: Path) -> str | None:
    """The processor's chat template from a separate file (the older format)."""
    path = folder / "chat_template.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["chat_template"]) if path.is_file() else None


# ----------------------------------------------------------------------------------------------------------- the prompt


def tokenize_question(
    spec: AudioModelSpec, processor: AudioProcessor, question: str, placeholder: int, ref: str
) -> tuple[list[int], list[int]]:
    """Return a question's token ids before and after the audio.

    Args:
        spec: the model's architecture.
        processor: its tokenizer and template.
        question: the text of the question.
        placeholder: token id in the place of the audio.
        ref: the model's reference, for error messages.

    Raises:
        ModelError: the prompt does not have exactly one placeholder.
    """
    tokens = _chat_tokens(spec, processor, question, ref) if spec.chat else _voxtral_tokens(processor, question)
    if tokens.count(placeholder) != 1:
        raise ModelError(
            f"the prompt of the model '{ref}' for '{question}' has {tokens.count(placeholder)} places for the audio "
            "instead of one; its chat template and tokenizer do not match, or the question contains the placeholder"
        )
    position = tokens.index(placeholder)
    brackets = [int(processor.tokenizer.convert_tokens_to_ids(name)) for name in spec.brackets]
    return tokens[:position] + brackets[:1], brackets[1:] + tokens[position + 1 :]


def _chat_tokens(spec: AudioModelSpec, processor: AudioProcessor, question: str, ref: str) -> list[int]:
    if not processor.template:
        raise ModelError(
            f"the model '{ref}' has no chat template, so it cannot caption; use an instruction-tuned checkpoint"
        )
    audio, text = {"type": "audio", "audio": ""}, {"type": "text", "text": question}
    content = [text, audio] if spec.text_first else [audio, text]
    rendered = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.template,
        tokenize=False,
        add_generation_prompt=True,
    )
    return list(processor.tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _voxtral_tokens(processor: AudioProcessor, question: str) -> list[int]:
    """`<s>[INST][BEGIN_AUDIO][AUDIO]question[/INST]`, the instruct form of Mistral's tokenizer version 7 and later."""
    names = ("<s>", "[INST]", "[BEGIN_AUDIO]", "[AUDIO]", "[/INST]")
    *before, after = (int(processor.tokenizer.convert_tokens_to_ids(name)) for name in names)
    return [*before, *processor.tokenizer(question, add_special_tokens=False)["input_ids"], after]
