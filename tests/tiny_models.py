"""Random CLAP and SAM models: the real classes at tiny size, saved with their processors like any checkpoint.

Their weights are drawn wider than for training, so that answers differ visibly from input to input.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PreTrainedTokenizerFast,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
    SamProcessor,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

CLAP_RATE = 16_000
CLAP_SECONDS = 1
SAM_SIZE = 64
WORDS = ["this", "is", "a", "sound", "of", "dog", "bell", "engine", "siren", "bird", "guitar", "rain", "door", ".", ","]


def make_clap(folder: Path, *, fused: bool = False, seed: int = 0) -> Path:
    """A CLAP of 16 kHz and one second: 64 mel bins of 101 frames at most."""
    audio = {
        "spec_size": 128,
        "num_mel_bins": 64,
        "window_size": 4,
        "depths": [1, 1],
        "num_attention_heads": [2, 4],
        "num_hidden_layers": 2,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
    }
    text = {
        "vocab_size": 4 + len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "hidden_act": "gelu",
    }
    torch.manual_seed(seed)
    model = ClapModel(ClapConfig(audio_config=audio, text_config=text, projection_dim=16)).eval()
    widen(model, 1.5)
    with torch.no_grad():  # decibels come in at about -60: normalize them as trained statistics would
        model.audio_model.audio_encoder.batch_norm.running_mean.fill_(-40.0)
        model.audio_model.audio_encoder.batch_norm.running_var.fill_(400.0)
    extractor = ClapFeatureExtractor(
        sampling_rate=CLAP_RATE,
        max_length_s=CLAP_SECONDS,
        hop_length=160,
        fft_window_size=512,
        frequency_max=8000,
        truncation="fusion" if fused else "rand_trunc",
    )
    model.save_pretrained(folder)
    ClapProcessor(extractor, _word_tokenizer()).save_pretrained(folder)
    return folder


def make_sam(folder: Path, *, seed: int = 0, hq: bool = False) -> Path:
    """A SAM or SAM-HQ that takes images of 64 pixels and answers masks of 32."""
    vision = {
        "hidden_size": 32,
        "output_channels": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SAM_SIZE,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 16,
        "mlp_dim": 64,
    }
    prompt = {"hidden_size": 32, "image_size": SAM_SIZE, "patch_size": 8}
    decoder = {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    }
    torch.manual_seed(seed)
    config_class, model_class = (SamHQConfig, SamHQModel) if hq else (SamConfig, SamModel)
    if hq:
        decoder["vit_dim"] = 32
    config = config_class(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    model = model_class(config).eval()
    widen(model, 1.0)
    model.save_pretrained(folder)
    sizes = {"size": {"longest_edge": SAM_SIZE}, "pad_size": {"height": SAM_SIZE, "width": SAM_SIZE}}
    SamProcessor(SamImageProcessorPil(**sizes)).save_pretrained(folder)
    return folder


def widen(model: torch.nn.Module, gain: float) -> None:
    """Matrices get a variance of gain^2 per input, tables of embeddings unit variance."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                table = "embeddings." in name
                parameter.normal_(0.0, 1.0 if table else gain * (parameter.numel() / parameter.shape[0]) ** -0.5)


def _word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with RoBERTa's special tokens at their ids (pad is 1)."""
    ids = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=40,
    )
