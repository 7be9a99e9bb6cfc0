"""Random language models: the real classes at tiny size, with a word-level tokenizer and a chat template, saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from openavs.models.vision_chat import without_video

SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]
TEXT = """
    system user assistant name what makes each sound answer in json dog barking bell ringing cat meowing frames with
    0 1 2 3 4 5 6 7 8 9 . : | - { } [ ] , " again
"""
CHATML = (
    "{% for message in messages %}<|im_start|> {{ message.role }} {{ message.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def make_lm(
    folder: Path, *, kind: str = "qwen3", template: str | None = CHATML, pad: bool = True, seed: int = 0
) -> Path:
    """A causal LM of two layers over about 60 words, saved like any checkpoint; its answers are babble.

    The saved generation settings sample and penalize repetition, as those of real chat models do.
    """
    tokenizer = make_tokenizer(template, pad)
    config_class, model_class = KINDS[kind]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.3,  # wide, so that answers differ from question to question
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = model_class(config).eval()
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        repetition_penalty=1.3,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(
    template: str | None = CHATML, pad: bool = True, more: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Words, digits and punctuation are tokens each; everything else is <unk>."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *TEXT.split(), *more])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\d|[^\w\s]"), "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<pad>" if pad else None,
        additional_special_tokens=["<|im_start|>", *more],
    )
    tokenizer.chat_template = template
    return tokenizer


VISION_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE {% else %}{{ part.text }} {% endif %}{% endfor %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def make_vlm(folder: Path, *, kind: str = "qwen3-vl", seed: int = 0, template: str | None = VISION_TEMPLATE) -> Path:
    """An image-text-to-text model of two layers, saved with its processor like any checkpoint."""
    torch.manual_seed(seed)
    config, processor = {"qwen3-vl": _qwen3_vl, "llava": _llava}[kind]()
    image_token = "<|vision_start|><|image_pad|><|vision_end|>" if kind == "qwen3-vl" else "<image>"
    processor.chat_template = template and template.replace("IMAGE", image_token)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, repetition_penalty=1.3, eos_token_id=processor.tokenizer.eos_token_id
    )
    with torch.no_grad():  # wider, so that answers differ from picture to picture
        for name, weight in model.named_parameters():
            if "visual" in name or "vision" in name or "projector" in name:
                weight.mul_(4.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen3_vl() -> tuple[Any, Any]:
    tokenizer = make_tokenizer(None, more=["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    image = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    config = Qwen3VLConfig(
        text_config=_tiny_text(len(tokenizer), tokenizer.eos_token_id)
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": 8,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.3,
        },
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in _QWEN_TOKENS},
    )
    processor_class = without_video(Qwen3VLProcessor)
    pixels = {"size": {"shortest_edge": 32 * 32, "longest_edge": 1 << 20}}
    return config, processor_class(Qwen2VLImageProcessorPil(**image, **pixels), tokenizer, None)


_QWEN_TOKENS = (
    ("image", "image_pad"),
    ("video", "video_pad"),
    ("vision_start", "vision_start"),
    ("vision_end", "vision_end"),
)


def _llava() -> tuple[Any, Any]:
    tokenizer = make_tokenizer(None, more=["<image>"])
    config = LlavaConfig(
        text_config=LlamaConfig(**_tiny_text(len(tokenizer), tokenizer.eos_token_id)),
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return config, LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _tiny_text(size: int, eos: int) -> dict[str, Any]:
    return {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 8192,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": None,
    }
