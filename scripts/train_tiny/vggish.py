"""Train the tiny VGGish: `python -m scripts.train_tiny.vggish --out openavs/assets/tiny/vggish`.

A few minutes on one CPU core. Like the original it is trained to tag sounds, here the twenty synthetic categories, none
to three at once; the layer before the tags is the feature.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from openavs.media.log_mel import examples
from openavs.structures.types import Waveform
from openavs.synthetic.audio import RATE, background
from openavs.synthetic.categories import KINDS
from openavs.training.models.backbones import Vggish, VggishConfig, save_vggish
from scripts.train_tiny import audio_data
from scripts.train_tiny.common import StepLogger, parse_arguments

logger = logging.getLogger(__name__)

CONFIG = VggishConfig(width=8, hidden=128)
_SILENT = 0.1  # share of windows without a source


def batch_of(windows: Sequence[audio_data.LabeledWindow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return examples `[N, 96, 64]` and their sources, `[N, len(KINDS)]` of 0 and 1."""
    log_mel = np.concatenate([examples(Waveform(window.samples, RATE)) for window in windows])
    target = torch.zeros(len(windows), len(KINDS))
    for row, window in enumerate(windows):
        target[row, list(window.kinds)] = 1.0
    return torch.from_numpy(log_mel), target


def train(network: Vggish, tags: nn.Linear, *, steps: int, batch: int, rate: float, seed: int, clips: int) -> None:
    """Train network and tags in place."""
    started = time.monotonic()
    pool = audio_data.SoundPool(clips, 4.0, audio_data.TRAIN, seed)
    logger.info("synthesized the sounds in %.0f s", time.monotonic() - started)
    parameters = [*network.parameters(), *tags.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average, log_step = 0.0, StepLogger(logger)
    for step in range(steps):
        rng = audio_data.generator(audio_data.TRAIN, seed + 2, step)
        windows = [_window(pool, rng) for _ in range(batch)]
        log_mel, target = batch_of(windows)
        loss = F.binary_cross_entropy_with_logits(tags(network(log_mel)), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average = 0.99 * average + 0.01 * loss.item() if step else loss.item()
        log_step(step, loss=average)


def _window(pool: audio_data.SoundPool, rng: np.random.Generator) -> audio_data.LabeledWindow:
    if rng.uniform() < _SILENT:
        return audio_data.LabeledWindow(background(1.0, rng), ())
    return audio_data.sample_window(pool, rng)


@torch.inference_mode()
def evaluate(network: Vggish, tags: nn.Linear, *, split: int, count: int, seed: int = 0) -> dict[str, float]:
    """Return the shares of held-out windows of one, two and three sources with exactly these as the best tags."""
    figures = {}
    for sources, name in ((1, "single"), (2, "pair"), (3, "triple")):
        windows = [audio_data.evaluation_window(split, seed, sources * 1_000_000 + i, sources) for i in range(count)]
        log_mel, target = batch_of(windows)
        best = torch.zeros_like(target).scatter_(1, tags(network(log_mel)).topk(sources).indices, 1.0)
        figures[f"{name}_top{sources}"] = (best == target).all(dim=1).double().mean().item()
    return figures


def main() -> None:
    """Train, save the model without its tags, and log the figures on the validation split."""
    args = parse_arguments(__doc__, steps=2500, batch=32, rate=3e-3, clips=60, seed=0)
    network, tags = Vggish(CONFIG), nn.Linear(CONFIG.features, len(KINDS))
    train(network, tags, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed, clips=args.clips)
    save_vggish(network.half(), args.out)
    figures = evaluate(network.float(), tags, split=audio_data.VAL, count=300)
    logger.info("%s", json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
