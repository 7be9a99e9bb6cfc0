"""Random audio models: the real classes at tiny size, saved with the files of their checkpoints.

They babble. Their weights are drawn wide, so that what they say differs from sound to sound and question to question.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    DacConfig,
    GenerationConfig,
    ModernBertConfig,
    MusicFlamingoConfig,
    MusicFlamingoForConditionalGeneration,
    MusicFlamingoProcessor,
    PeAudioConfig,
    PeAudioEncoderConfig,
    PeAudioFeatureExtractor,
    PeAudioFrameLevelModel,
    PeAudioProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

RATE = 16_000
SECONDS = 2  # input length of the tiny encoders
POSITIONS = SECONDS * 50  # encoder frames
LABELS = ["Dog", "Bark", "Bell", "Engine", "Siren"]

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
SPECIAL += ["<sound>", "[INST]", "[/INST]", "[AUDIO]", "[BEGIN_AUDIO]"]
WORDS = """
    generate audio caption metadata this is a sound of what do you hear Generate This What user assistant dog barking
    bell ringing engine siren bird guitar rain door loud quiet then and the in far away again ? . , :
"""
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'audio' %}SOUND {% else %}{{ part.text }} {% endif %}{% endfor %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
QWEN_TEMPLATE = TEMPLATE.replace("SOUND", "<|audio_bos|><|AUDIO|><|audio_eos|>")
FLAMINGO_TEMPLATE = TEMPLATE.replace("SOUND", "<sound>")

_TOWER = {"num_mel_bins": 16, "max_source_positions": POSITIONS}
_LAYERS = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 16}


def make_qwen2_audio(folder: Path) -> Path:
    """A Qwen2-Audio with 2 s of input, with its processor and a chat template."""
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder"} | _TOWER | _LAYERS,
        text_config=_text("qwen2"),
        audio_token_index=token("<|AUDIO|>"),
    )
    _save(Qwen2AudioForConditionalGeneration, config, folder)
    Qwen2AudioProcessor(_extractor(), audio_tokenizer(), chat_template=QWEN_TEMPLATE).save_pretrained(folder)
    return folder


def make_audio_flamingo(folder: Path) -> Path:
    """An Audio Flamingo 3 with 2 s of input, with its processor and a chat template."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    config = AudioFlamingo3Config(
        audio_config={"model_type": "audioflamingo3_encoder"} | _TOWER | sizes,
        text_config=_text("qwen2"),
        audio_token_id=token("<sound>"),
    )
    _save(AudioFlamingo3ForConditionalGeneration, config, folder)
    AudioFlamingo3Processor(_extractor(), audio_tokenizer(), chat_template=FLAMINGO_TEMPLATE).save_pretrained(folder)
    return folder


def make_music_flamingo(folder: Path) -> Path:
    """A Music Flamingo, the class of Audio Flamingo Next, with 2 s of input, its processor and a chat template."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    tokenizer = audio_tokenizer()
    brackets = ["<|sound_bos|>", "<|sound_eos|>"]
    tokenizer.add_tokens(brackets, special_tokens=True)
    start, end = tokenizer.convert_tokens_to_ids(brackets)
    config = MusicFlamingoConfig(
        audio_config={"model_type": "audioflamingo3_encoder"} | _TOWER | sizes,
        text_config=_text("qwen2") | {"vocab_size": len(tokenizer)},
        audio_token_id=token("<sound>"),
        audio_bos_token_id=start,
        audio_eos_token_id=end,
        rope_parameters={"rope_type": "default", "rope_theta": 1200, "partial_rotary_factor": 0.5},
    )
    _save(MusicFlamingoForConditionalGeneration, config, folder)
    MusicFlamingoProcessor(_extractor(), tokenizer, chat_template=FLAMINGO_TEMPLATE).save_pretrained(folder)
    return folder


def make_voxtral(folder: Path, *, tekken: bool = False) -> Path:
    """A Voxtral with 2 s of input, with a tokenizer that knows its control tokens; `tekken`: in Mistral's own file."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 16}
    config = VoxtralConfig(
        audio_config={"model_type": "voxtral_encoder"} | _TOWER | sizes,
        text_config=_text("llama"),
        audio_token_id=token("[AUDIO]"),
    )
    _save(VoxtralForConditionalGeneration, config, folder)
    _extractor().save_pretrained(folder)
    if tekken:
        (folder / "tekken.json").write_text(json.dumps(_tekken()), encoding="utf-8")
    else:
        audio_tokenizer().save_pretrained(folder)
    return folder


def make_omni_2_5(folder: Path) -> Path:
    """The thinker of a Qwen2.5-Omni with 2 s of input; template, extractor and tokenizer as in its checkpoints."""
    text = _text("qwen2_5_omni_text") | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5OmniThinkerConfig(
        audio_config=_TOWER | _LAYERS | {"n_window": 20, "output_dim": 32},
        vision_config=vision,
        text_config=text,
        audio_token_index=token("<|AUDIO|>"),
        vision_start_token_id=token("[BEGIN_AUDIO]"),
    )
    _save(Qwen2_5OmniThinkerForConditionalGeneration, config, folder)
    return _save_omni_files(folder)


def make_omni_3(folder: Path) -> Path:
    """The thinker of a Qwen3-Omni (mixture of experts) with 2 s of input."""
    text = _text("qwen3_omni_moe_text") | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True},
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    audio = {"n_window": 50, "n_window_infer": 100, "output_dim": 32, "downsample_hidden_size": 8}
    config = Qwen3OmniMoeThinkerConfig(
        audio_config=_TOWER | _LAYERS | audio,
        vision_config=vision | {"deepstack_visual_indexes": [0]},
        text_config=text,
        audio_token_id=token("<|AUDIO|>"),
        vision_start_token_id=token("[BEGIN_AUDIO]"),
    )
    _save(Qwen3OmniMoeThinkerForConditionalGeneration, config, folder)
    return _save_omni_files(folder)


def make_ast(folder: Path, *, problem: str | None = None) -> Path:
    """An Audio Spectrogram Transformer with the five `LABELS`."""
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=100,
        num_mel_bins=16,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        **_labels(problem),
    )
    _save(ASTForAudioClassification, config, folder)
    ASTFeatureExtractor(max_length=100, num_mel_bins=16).save_pretrained(folder)
    return folder


def make_wav2vec2(folder: Path) -> Path:
    """A wav2vec 2.0 classifier: it takes waveforms as they are, of any length, padded together."""
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_kernel=(10, 8),
        conv_stride=(5, 8),
        num_feat_extract_layers=2,
        feat_extract_norm="layer",
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        **_labels("single_label_classification"),
    )
    _save(Wav2Vec2ForSequenceClassification, config, folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(folder)
    return folder


def make_whisper_tagger(folder: Path) -> Path:
    """A Whisper encoder with a classifier on top."""
    config = WhisperConfig(
        num_mel_bins=16,
        max_source_positions=POSITIONS,
        classifier_proj_size=8,
        **_LAYERS,
        **_labels("single_label_classification"),
    )
    _save(WhisperForAudioClassification, config, folder)
    _extractor().save_pretrained(folder)
    return folder


def make_pe_a_frame(folder: Path) -> Path:
    """A PE-A-Frame with the strides of the published models: 48 kHz, 25 frames a second."""
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = audio_tokenizer()
    tokenizer.padding_side = "right"  # a text is represented by its first token
    special = {f"{name}_token_id": token("<pad>") for name in ("pad", "bos", "cls", "eos", "sep")}
    text = ModernBertConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, **layers, **special)
    audio = PeAudioEncoderConfig(
        dac_config=DacConfig(downsampling_ratios=[2, 8, 10, 12], encoder_hidden_size=2, codebook_dim=8),
        hidden_size=16,
        intermediate_size=32,
        head_dim=8,
        **layers,
    )
    _save(PeAudioFrameLevelModel, PeAudioConfig(text_config=text, audio_config=audio), folder)
    model = PeAudioFrameLevelModel.from_pretrained(folder)
    with torch.no_grad():
        model.text_audio_logit_scale.fill_(0.1)
    model.save_pretrained(folder)
    PeAudioProcessor(feature_extractor=PeAudioFeatureExtractor(), tokenizer=tokenizer).save_pretrained(folder)
    return folder


def audio_tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation are tokens each; the control tokens of all families have their place."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS.split())])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[4:],
    )
    tokenizer.padding_side = "left"
    return tokenizer


def _tekken() -> dict[str, Any]:
    """Mistral's form of a tokenizer: its control tokens, then single letters."""
    letters = [base64.b64encode(letter.encode()).decode() for letter in " abcdefghijklmnopqrstuvwxyzGTW?"]
    return {
        "config": {
            "pattern": r"\p{L}+|\p{N}|[^\p{L}\p{N}]",
            "num_vocab_tokens": len(letters),
            "default_vocab_size": len(SPECIAL) + len(letters),
            "default_num_special_tokens": len(SPECIAL),
            "version": "v7",
        },
        "vocab": [{"rank": i, "token_bytes": letter, "token_str": None} for i, letter in enumerate(letters)],
        "special_tokens": [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(SPECIAL)],
    }


def token(name: str) -> int:
    """The id of a control token."""
    return SPECIAL.index(name)


def _text(kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": len(audio_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }


def _labels(problem: str | None) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: i for i, label in enumerate(LABELS)},
        "problem_type": problem,
    }


def _extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=16, chunk_length=SECONDS)


def _save(model_class: type[PreTrainedModel], config: Any, folder: Path) -> None:
    """Random weights, wide, and the sampling settings that real chat models are saved with."""
    torch.manual_seed(3)
    model: Any = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name and "positional" not in name:
                weight.normal_(std=2.0 * (weight.numel() / weight.shape[0]) ** -0.5)
    if model.can_generate():
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=0.7, top_k=20, repetition_penalty=1.3, eos_token_id=token("<|im_end|>")
        )
    model.save_pretrained(folder)


def _save_omni_files(folder: Path) -> Path:
    """An Omni checkpoint has no processor that loads without torchvision, but these files."""
    _extractor().save_pretrained(folder)
    audio_tokenizer().save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_TEMPLATE}), encoding="utf-8")
    return folder
