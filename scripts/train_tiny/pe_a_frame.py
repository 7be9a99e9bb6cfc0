"""Train the tiny PE-A-Frame: `python -m scripts.train_tiny.pe_a_frame --out openavs/assets/tiny/pe-a-frame`.

The model is trained on synthetic sounds only. Its strided encoder starts as a bank
of band-pass filters, since filters that are learned from waveforms alone need far more steps.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    DacConfig,
    ModernBertConfig,
    PeAudioConfig,
    PeAudioEncoderConfig,
    PeAudioFeatureExtractor,
    PeAudioFrameLevelModel,
    PeAudioProcessor,
)

from openavs.synthetic.audio import RATE
from openavs.synthetic.categories import KINDS
from scripts.train_tiny.audio_data import TRAIN, VAL, generator
from scripts.train_tiny.clap import build_tokenizer, random_texts
from scripts.train_tiny.common import StepLogger, parse_arguments, save_half
from scripts.train_tiny.event_data import FRAME, LabeledTrack, TrackPool, sample_track

logger = logging.getLogger(__name__)

STRIDES = (4, 40, 4)  # 16 kHz -> 4 kHz, in which 4 channels hold the 4 phases -> 100 Hz -> 25 Hz
_CHANNELS = 16  # at the full rate; doubled by each stride
_BANDS = _CHANNELS * 2  # filters in pairs of equal frequency, a quarter period apart
_NEUTRAL = 1e-3  # a Snake activation with this alpha is the identity up to 0.1 %
_SQUARE = 3.0  # alpha of the activation behind the filters, which measures their power
_GAIN = 30.0  # of the filters: loud sounds reach the bend of that activation, quiet ones do not vanish
_SINGLE = (0.9, 0.055, 0.03, 0.015)  # mixtures help little before single sounds are learned
_CROWDED = (0.2, 0.44, 0.24, 0.12)
_SCENES = (0.25, 0.6, 0.15)  # as in the scenes of the synthetic world
_EDGE = 6  # frames around a start or an end that count more in the last training
_SPREAD = 0.1  # of initial weights: the library's 0.02 suits layers that are ten times as wide
_TAPS = STRIDES[0] * STRIDES[1] * 2


def build_extractor() -> PeAudioFeatureExtractor:
    """Build the feature extractor: 16 kHz, since the synthetic world has no higher rate; 25 frames a second."""
    return PeAudioFeatureExtractor(sampling_rate=RATE, hop_length=FRAME)


def build_model(tokenizer: Any) -> PeAudioFrameLevelModel:
    """Build an untrained model of half a million parameters, whose encoder is a bank of band-pass filters."""
    codec = DacConfig(
        downsampling_ratios=list(STRIDES), encoder_hidden_size=_CHANNELS, codebook_dim=96, sampling_rate=RATE
    )
    audio = PeAudioEncoderConfig(
        dac_config=codec,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=3,
        head_dim=32,
        initializer_range=_SPREAD,
    )
    text = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=_SPREAD,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        cls_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    model = PeAudioFrameLevelModel(PeAudioConfig(text_config=text, audio_config=audio))
    _init_filters(model.audio_encoder.embedder.dac_encoder)
    with torch.no_grad():
        for layer in model.text_model.layers:  # the first token, which stands for the text, begins with little of it
            layer.attn.Wo.weight.mul_(4.0)
        resnet = model.audio_encoder.patch_embedder.resnet_block
        for conv in (model.audio_encoder.embedder.bottleneck, resnet.block1.project, resnet.block2.project):
            torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
        model.text_audio_logit_scale.fill_(1.0)
        model.text_audio_logit_bias.fill_(-3.0)
        for head in (model.text_audio_head, model.audio_head):
            torch.nn.init.orthogonal_(head.proj.weight)
            head.proj.weight.mul_(0.5)
    return model


@torch.no_grad()
def _init_filters(encoder: Any) -> None:
    """Set the encoder to: 4 phases of the waveform -> windowed band-pass filters -> power -> learned layers."""
    phases, filters, pooling = encoder.block
    encoder.conv1.weight.zero_()
    encoder.conv1.weight[0, 0, 3] = 1.0
    phases.conv1.weight.zero_()
    for phase in range(STRIDES[0]):
        phases.conv1.weight[phase, 0, phase + 2] = 1.0  # padded by 2: output n, channel p is sample 4 n + p
    for block in (phases, filters):
        for unit in (block.res_unit1, block.res_unit2, block.res_unit3):
            unit.conv2.weight.zero_()
        for module in block.modules():
            if hasattr(module, "alpha"):
                module.alpha.fill_(_NEUTRAL)
    time = (torch.arange(_TAPS) - (_TAPS - 1) / 2) / RATE
    mel = torch.linspace(_to_mel(60.0), _to_mel(7400.0), _BANDS)
    centers = 700 * (10 ** (mel / 2595) - 1)
    taps = torch.zeros(2 * _BANDS, _TAPS)
    spacing = torch.gradient(centers)[0]
    for band, (center, width) in enumerate(zip(centers, spacing, strict=True)):
        length = float((1.6 / width).clamp(0.006, _TAPS / RATE))  # narrow bands need long windows
        window = torch.where(time.abs() < length / 2, torch.cos(np.pi * time / length) ** 2, 0.0)
        for part, shift in enumerate((0.0, np.pi / 2)):
            wave = window * torch.cos(2 * np.pi * center * time + shift)
            taps[2 * band + part] = _GAIN * wave / window.sum()
    filters.conv1.weight.zero_()
    filters.conv1.weight[:, : STRIDES[0]] = taps.view(2 * _BANDS, -1, STRIDES[0]).transpose(1, 2)
    pooling.res_unit1.snake1.alpha.fill_(_SQUARE)
    pooling.res_unit1.snake2.alpha.fill_(_NEUTRAL)
    for conv, middle in ((pooling.res_unit1.conv1, 3), (pooling.res_unit1.conv2, 0)):
        conv.weight.normal_(std=0.01)
        sign = -1.0 if middle else 1.0
        conv.weight[:, :, middle] += sign * torch.eye(2 * _BANDS)  # -x - sin(a x)^2 / a; the input is added to it
    for unit in (pooling.res_unit2, pooling.res_unit3):
        for conv in (unit.conv1, unit.conv2):
            torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    for conv in (pooling.conv1, encoder.conv2):
        torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    for unit in (pooling.res_unit2, pooling.res_unit3):
        unit.conv2.weight.mul_(0.1)


def _to_mel(frequency: float) -> float:
    return 2595 * float(np.log10(1 + frequency / 700))


def encode(model: PeAudioFrameLevelModel, samples: torch.Tensor) -> torch.Tensor:
    """Return frame embeddings `[N, T, D]` of `samples` [N, S]: the model's own, with gradients, in less time.

    The library runs the strided encoder without gradients. Its first two blocks are a linear filter bank here, which
    one strided convolution computes.
    """
    encoder, codec = model.audio_encoder, model.audio_encoder.embedder.dac_encoder
    filters, pooling = codec.block[1], codec.block[2]
    taps = filters.conv1.weight[:, : STRIDES[0]].transpose(1, 2).reshape(-1, 1, _TAPS)
    stride = STRIDES[0] * STRIDES[1]
    bands = F.conv1d(samples[:, None], taps, filters.conv1.bias, stride=stride, padding=stride // 2)
    features = codec.conv2(codec.snake1(pooling(bands)))
    inputs = encoder.embedder.data_proj(encoder.embedder.bottleneck(features).transpose(1, 2))
    hidden, _ = encoder.patch_embedder(inputs)
    positions = encoder.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    for layer in encoder.layers:
        hidden = layer(hidden, attention_mask=None, position_embeddings=positions)
    vectors: torch.Tensor = model.audio_head(encoder.output(encoder.norm(hidden))[:, 1:])
    return vectors


def embed_texts(model: PeAudioFrameLevelModel, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return embeddings `[N, D]` of texts."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    hidden = model.text_model(**tokens, output_hidden_states=True).hidden_states[-1][:, 0]
    vectors: torch.Tensor = model.text_audio_head(hidden)
    return vectors


def logits_of(model: PeAudioFrameLevelModel, audio: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return logits `[N, texts, T]`."""
    products = (audio @ text.T).transpose(1, 2)
    logits: torch.Tensor = products * model.text_audio_logit_scale + model.text_audio_logit_bias
    return logits


def train(
    model: PeAudioFrameLevelModel,
    tokenizer: Any,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    first: Sequence[float] = _SINGLE,
    then: Sequence[float] = _CROWDED,
    clips: int = 60,
    joint: float = 0.0,
    edge_weight: float = 1.0,
    pauses: bool = False,
) -> None:
    """Train in place; the model is in evaluation mode afterwards.

    `first` and `then` are the shares of soundtracks with one source, two and so on, in the first 15 % of the steps and
    in the others. `joint` is the share of those whose sources start and stop together (`sample_track`), and
    `edge_weight` the weight of the frames around the start and the end of a source. With `pauses` nothing
    sounds in the pauses within an event: no model can know in a pause whether another bark follows.
    """
    started = time.monotonic()
    pool = TrackPool(clips, 5.0, TRAIN, seed)
    logger.info("synthesized the sounds in %.0f s", time.monotonic() - started)
    codec = model.audio_encoder.embedder.dac_encoder
    for part in (codec.conv1, codec.block[0], codec.block[1]):  # the filters stay as they are
        part.requires_grad_(False)
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average, log_step = 0.0, StepLogger(logger)
    model.train()
    for step in range(steps):
        rng = generator(TRAIN, seed + 1, step)
        seconds, count = (10, batch // 2) if step % 5 == 4 else (5, batch)
        shares = first if step < 0.15 * steps else then
        together = [bool(joint) and rng.random() < joint for _ in range(count)]  # no draw without them
        tracks = [sample_track(pool, rng, seconds, shares, joint=own) for own in together]
        audio = encode(model, torch.from_numpy(np.stack([track.samples for track in tracks])))
        text = embed_texts(model, tokenizer, random_texts(rng))
        logits = logits_of(model, audio, text)
        events, sounding = (
            F.pad(torch.from_numpy(np.stack(own)), (0, 0, 0, 1))
            for own in zip(*((track.events, track.sounding) for track in tracks), strict=True)
        )
        targets = sounding if pauses else events
        weights_of = 1 + (edge_weight - 1) * near_edges(events)
        loss = F.binary_cross_entropy_with_logits(logits, targets, weights_of) * len(KINDS)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average = 0.95 * average + 0.05 * loss.item() if step else loss.item()
        log_step(step, loss=average)
    model.eval()


def near_edges(targets: torch.Tensor) -> torch.Tensor:
    """Return 1 for the frames within `_EDGE` of a start or an end in the targets `[N, kinds, T]`, and 0 for others."""
    changes = (F.pad(targets, (1, 1)).diff(dim=-1) != 0).float()  # [.., T + 1], the last one after the last frame
    return F.max_pool1d(changes, 2 * _EDGE, stride=1, padding=_EDGE)[..., 1:-1]


@torch.inference_mode()
def evaluate(
    model: PeAudioFrameLevelModel, tokenizer: Any, *, split: int, count: int, seed: int = 0
) -> dict[str, float]:
    """Return the frame-level F of `count` held-out soundtracks by threshold, by the library's own forward pass."""
    pool = TrackPool(8, 5.0, split, seed)
    text = tokenizer([kind.heard[0] for kind in KINDS], padding=True, return_tensors="pt", return_token_type_ids=False)
    tracks = [sample_track(pool, generator(split, seed + 1, index), 5) for index in range(count)]
    scores = torch.stack([_forward(model, track, text) for track in tracks])
    truth = torch.from_numpy(np.stack([track.sounding for track in tracks])) >= 0.5
    figures = {}
    for threshold in (0.3, 0.4, 0.5, 0.6):
        found = scores >= threshold
        figures[f"frame_f_{threshold}"] = (2 * (found & truth).sum() / (found.sum() + truth.sum())).item()
    return figures


def _forward(model: PeAudioFrameLevelModel, track: LabeledTrack, text: Any) -> torch.Tensor:
    samples = torch.from_numpy(track.samples)[None, None]
    logits: torch.Tensor = model(
        input_values=samples, padding_mask=torch.ones_like(samples[:, 0]), **text
    ).logits_audio_text
    return logits[0].sigmoid()


def main() -> None:
    """Train, save the processor and the model, and log the figures on the validation split.

    `--more` are steps of a second training, from the saved weights, on other sounds in mixtures like those of scenes;
    `--edges` those of a third and a fourth one, in which starts and ends count more, and three of five soundtracks have
    sources that start and stop together; `--pauses` those of three more like these, in which nothing sounds in pauses.
    `--start FOLDER` skips the first, and `--more 0` and `--edges 0` skip those of their steps.
    """
    args = parse_arguments(
        __doc__, steps=2600, more=8000, edges=4000, pauses=3000, batch=10, rate=2e-3, seed=0, start=""
    )
    torch.set_flush_denormal(True)
    tokenizer = build_tokenizer()
    settings: dict[str, Any] = {"batch": args.batch, "rate": args.rate}
    if not args.start:
        model = build_model(tokenizer)
        logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
        train(model, tokenizer, steps=args.steps, seed=args.seed, **settings)
        save_half(model, args.out)
    model = PeAudioFrameLevelModel.from_pretrained(args.start or args.out, dtype=torch.float32)
    if args.more:
        train(model, tokenizer, steps=args.more, seed=args.seed + 1000, first=_SCENES, then=_SCENES, **settings)
        save_half(model, args.out)
        model = PeAudioFrameLevelModel.from_pretrained(args.out, dtype=torch.float32)
    settings |= {"rate": args.rate / 2, "clips": 100, "joint": 0.6, "edge_weight": 4.0}
    trainings = [
        (args.edges, 2000, False),
        (args.edges, 3000, False),
        (args.pauses, 5000, True),
        (args.pauses, 6000, True),
        (args.pauses, 7000, True),
    ]
    for steps, seed, pauses in (own for own in trainings if own[0]):
        settings |= {"seed": args.seed + seed, "pauses": pauses}
        train(model, tokenizer, steps=steps, first=_SCENES, then=_SCENES, **settings)
        save_half(model, args.out)
        model = PeAudioFrameLevelModel.from_pretrained(args.out, dtype=torch.float32)
    PeAudioProcessor(feature_extractor=build_extractor(), tokenizer=tokenizer).save_pretrained(args.out)
    figures = evaluate(model, tokenizer, split=VAL, count=200)
    logger.info("%s", json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
