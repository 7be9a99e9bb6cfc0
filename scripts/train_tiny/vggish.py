"""Trains the tiny VGGish: `python -m scripts.train_tiny.vggish --out openavs/assets/tiny/vggish`.

A few minutes on one CPU core. As the large one was, it is trained to tag sounds, and what comes before the tags is the
feature: here the twenty kinds of the synthetic world, one to three at once, or none.
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
from openavs.training.models.vggish import Vggish, VggishConfig, save_vggish
from scripts.train_tiny import audio_data as listening
from scripts.train_tiny.log import Teller
from scripts.train_tiny.options import begin

logger = logging.getLogger(__name__)

CONFIG = VggishConfig(width=8, hidden=128)
_SILENT = 0.1  # share of windows in which nothing sounds


def batch_of(windows: Sequence[listening.Heard]) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples `[N, 96, 64]` and which kinds sound in them, `[N, len(KINDS)]` of 0 and 1."""
    heard = np.concatenate([examples(Waveform(window.sound, RATE)) for window in windows])
    target = torch.zeros(len(windows), len(KINDS))
    for row, window in enumerate(windows):
        target[row, list(window.kinds)] = 1.0
    return torch.from_numpy(heard), target


def train(network: Vggish, tags: nn.Linear, *, steps: int, batch: int, rate: float, seed: int, clips: int) -> None:
    """Trains both in place."""
    began = time.monotonic()
    pool = listening.Pool(clips, 4.0, listening.TRAIN, seed)
    logger.info("made the sounds in %.0f s", time.monotonic() - began)
    parameters = [*network.parameters(), *tags.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average, tell = 0.0, Teller(logger)
    for step in range(steps):
        rng = listening.generator(listening.TRAIN, seed + 2, step)
        windows = [_window(pool, rng) for _ in range(batch)]
        heard, target = batch_of(windows)
        loss = F.binary_cross_entropy_with_logits(tags(network(heard)), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average = 0.99 * average + 0.01 * loss.item() if step else loss.item()
        tell(step, loss=average)


def _window(pool: listening.Pool, rng: np.random.Generator) -> listening.Heard:
    if rng.uniform() < _SILENT:
        return listening.Heard(background(1.0, rng), ())
    return listening.window(pool, rng)


@torch.inference_mode()
def evaluate(network: Vggish, tags: nn.Linear, *, split: int, count: int, seed: int = 0) -> dict[str, float]:
    """How often the one, two or three kinds of held-out windows are exactly the best tags."""
    figures = {}
    for sources, name in ((1, "single"), (2, "pair"), (3, "triple")):
        windows = [listening.scene(split, seed, sources * 1_000_000 + i, sources) for i in range(count)]
        heard, target = batch_of(windows)
        best = torch.zeros_like(target).scatter_(1, tags(network(heard)).topk(sources).indices, 1.0)
        figures[f"{name}_top{sources}"] = (best == target).all(dim=1).double().mean().item()
    return figures


def main() -> None:
    """Trains, saves the model without its tags, and logs the figures on the validation split."""
    args = begin(__doc__, steps=2500, batch=32, rate=3e-3, clips=60, seed=0)
    network, tags = Vggish(CONFIG), nn.Linear(CONFIG.features, len(KINDS))
    train(network, tags, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed, clips=args.clips)
    save_vggish(network.half(), args.out)
    figures = evaluate(network.float(), tags, split=listening.VAL, count=300)
    logger.info("%s", json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
