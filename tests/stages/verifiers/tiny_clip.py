"""A random CLIP: the real class at tiny size, saved with its processor like any checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny_models import widen

EDGE = 32
WORDS = ["a", "photo", "of", "dog", "bell", "cat", "barking", "nothing", "sky", "wall", "ground"]


def make_clip(folder: Path, *, seed: int = 0, crop: int = EDGE) -> Path:
    """A CLIP that takes 32 pixels and knows a dozen words."""
    ids = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS, "<s>", "</s>"])}
    end = ids["</s>"]
    text = {
        "vocab_size": len(ids),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "bos_token_id": ids["<s>"],
        "eos_token_id": end,
    }
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": crop,
        "patch_size": 8,
    }
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    widen(model, 1.5)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    sizes = {"size": {"shortest_edge": EDGE}, "crop_size": {"height": crop, "width": crop}}
    CLIPImageProcessorPil(**sizes).save_pretrained(folder)
    return folder
