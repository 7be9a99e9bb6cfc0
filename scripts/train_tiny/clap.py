"""Train the tiny CLAP model: `python -m scripts.train_tiny.clap --out openavs/assets/tiny/clap`.

About fifteen minutes on one CPU core. The model is trained on synthetic sounds only. Its softmax over captions is the
share of each caption in a mixture: simultaneous sources have equal shares.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    ClapTextConfig,
    PreTrainedTokenizerFast,
)

from openavs.synthetic.audio import RATE
from openavs.synthetic.categories import KINDS
from scripts.train_tiny import audio_data
from scripts.train_tiny.common import StepLogger, parse_arguments

logger = logging.getLogger(__name__)

TEMPLATE = "This is a sound of {}."
_TEMPLATES = (TEMPLATE, TEMPLATE, TEMPLATE, TEMPLATE, "{}", "The sound of {}.", "{} can be heard.")  # language: ok
_UNKNOWN = "something unnameable"  # represents words outside the vocabulary


def captions_of(kind: int) -> tuple[str, ...]:
    """Return all captions of a category, with its name."""
    return (*KINDS[kind].heard, KINDS[kind].name)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer of all captions, with RoBERTa's ids of special tokens."""
    split = pre_tokenizers.Whitespace()
    texts = [*(t.format("") for t in _TEMPLATES), *(c for k in range(len(KINDS)) for c in captions_of(k))]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = split
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=30,
    )


def build_extractor() -> ClapFeatureExtractor:
    """Build the feature extractor for windows of one second: 101 frames of 64 mel bins."""
    return ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=RATE,
        hop_length=160,
        max_length_s=1,
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=8000,
        truncation="rand_trunc",  # the default, fusion, is for models with four input channels
        padding="repeatpad",
    )


def build_model(words: int) -> ClapModel:
    """Build an untrained model of 0.9 M parameters: HTSAT with three stages and RoBERTa with two layers."""
    audio = ClapAudioConfig(
        spec_size=128,  # 64 mel bins, folded twice: room for 256 frames
        num_mel_bins=64,
        patch_size=[4, 8],
        patch_stride=[4, 8],
        window_size=4,
        patch_embeds_hidden_size=32,
        depths=[2, 2, 2],
        num_attention_heads=[2, 4, 8],
        hidden_act="relu",  # a third of the cost of GELU on a CPU
        hidden_size=128,
        num_hidden_layers=3,
        hidden_dropout_prob=0.0,
    )
    text = ClapTextConfig(
        vocab_size=words,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=34,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=64))


def embed_texts(model: ClapModel, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return unit vectors `[N, D]` of texts."""
    vectors: torch.Tensor = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    return vectors


def random_texts(rng: np.random.Generator) -> list[str]:
    """Return a random caption of each category, and one of unknown words that is never correct."""
    template = str(rng.choice(_TEMPLATES))
    chosen = [str(rng.choice(captions_of(kind))) for kind in range(len(KINDS))]
    return [template.format(caption) for caption in (*chosen, _UNKNOWN)]


def train(
    model: ClapModel, tokenizer: Any, *, steps: int, batch: int, rate: float, seed: int, clips: int = 150
) -> None:
    """Train in place; the model is in evaluation mode afterwards."""
    started, mel = time.monotonic(), audio_data.BatchedLogMel(build_extractor())
    pool = audio_data.SoundPool(clips, 4.0, audio_data.TRAIN, seed)
    logger.info("synthesized the sounds in %.0f s", time.monotonic() - started)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average, log_step = 0.0, StepLogger(logger)
    model.train()
    for step in range(steps):
        rng = audio_data.generator(audio_data.TRAIN, seed + 1, step)
        alone = 0.8 if step < 0.15 * steps else 0.4  # mixtures help little before single sounds are learned
        windows = [audio_data.sample_window(pool, rng, alone) for _ in range(batch)]
        audio = model.get_audio_features(mel(np.stack([window.samples for window in windows]))).pooler_output
        text = embed_texts(model, tokenizer, random_texts(rng))
        logits = model.logit_scale_a.exp() * audio @ text.T
        loss = F.cross_entropy(logits, F.pad(audio_data.targets(windows), (0, 1)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale_a.clamp_(max=float(np.log(60)))
        average = 0.99 * average + 0.01 * loss.item() if step else loss.item()
        log_step(step, loss=average)
    with torch.no_grad():
        model.logit_scale_t.copy_(model.logit_scale_a)
    model.eval()


@torch.inference_mode()
def evaluate(
    model: ClapModel, tokenizer: Any, *, split: int, count: int, threshold: float, seed: int = 0
) -> dict[str, float]:
    """Return figures on `count` held-out windows of one, two and three sources each, with the canonical captions.

    `single_top1`: the source has the highest score; `pair_found`: both sources have the two highest scores and are
    above the threshold; `pair_false`: another category is above it; the others accordingly.
    """
    mel = audio_data.BatchedLogMel(build_extractor())
    text = embed_texts(model, tokenizer, [TEMPLATE.format(kind.heard[0]) for kind in KINDS])
    figures: dict[str, float] = {}
    for sources, name in ((1, "single"), (2, "pair"), (3, "triple")):
        windows = [
            audio_data.evaluation_window(split, seed, sources * 1_000_000 + index, sources) for index in range(count)
        ]
        features = mel(np.stack([window.samples for window in windows]))
        audio = torch.cat([model.get_audio_features(part).pooler_output for part in torch.split(features, 64)])
        scores = (model.logit_scale_a.exp() * audio @ text.T).softmax(dim=-1)
        present = audio_data.targets(windows) > 0
        first = torch.zeros_like(present).scatter_(1, scores.topk(sources).indices, True)
        above = scores >= threshold
        right = (first == present).all(1)
        figures[f"{name}_top{sources}"] = right.double().mean().item()
        figures[f"{name}_found"] = (right & (above | ~present).all(1)).double().mean().item()
        figures[f"{name}_false"] = (above & ~present).any(1).double().mean().item()
        figures[f"{name}_score"] = scores[present].mean().item()
        figures[f"{name}_low"] = scores[present].quantile(0.05).item()
        figures[f"{name}_absent_high"] = scores.masked_fill(present, 0).amax(1).quantile(0.95).item()
    return figures


def main() -> None:
    """Train, save the processor and the model, and log the figures on the validation split."""
    args = parse_arguments(__doc__, steps=4500, batch=32, rate=2e-3, seed=0)
    torch.set_flush_denormal(True)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    train(model, tokenizer, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed)
    model.save_pretrained(args.out)
    ClapProcessor(feature_extractor=build_extractor(), tokenizer=tokenizer).save_pretrained(args.out)
    figures = evaluate(model, tokenizer, split=audio_data.VAL, count=600, threshold=0.2)
    logger.info("%s", json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
