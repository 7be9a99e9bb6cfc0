"""Counts the captions of CLAP for a folder of sounds, at several thresholds and window lengths.

    python eval/experiments/clap_calibration.py SOUNDS --pipeline openavs-cpu

Runs the captioner of a recipe (`clap` or `laion-clap`) on every audio or video file of a folder, one window per second,
and prints

- `logit_scale`: the scale of the cosines in the checkpoint, and the one in use;
- for the windows of the recipe, and for windows of 1, 3 and 10 s alone: the number of audible windows, the 10th, 50th
  and 90th percentile of the best score, and for each threshold the share of audible windows with a caption
  (`captioned`) and with a caption that names a visible object (`named`).

Choose the largest threshold at which at least 0.9 of the windows of sounds with a visible source are named. Most
windows of rain, wind or music should then not be. `--files` lists the captions of each window at the threshold of the
recipe.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openavs.config.recipe import Recipe, load_recipe
from openavs.errors import InputError, OpenAVSError
from openavs.media.audio import read_audio
from openavs.media.clip import planned_times
from openavs.pipeline.frames import audio_window
from openavs.registry import check_backends, instantiate
from openavs.stages.captioners.label_selection import combine_scales
from openavs.stages.captioners.zero_shot import ZeroShotCaptioner
from openavs.stages.lexicon import lexicon
from openavs.structures.types import AudioWindow, Caption, Waveform, strong_captions

THRESHOLDS = (0.2, 0.1, 0.05, 0.04, 0.02, 0.01)


def main() -> int:
    """Run the captioner and print the figures; 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path, help="a folder of audio or video files")
    parser.add_argument("--pipeline", default="openavs-cpu", help="a recipe whose captioner is clap or laion-clap")
    parser.add_argument("--windows", type=_numbers, default=(1.0, 3.0, 10.0), help="lengths in seconds: 1,3,10")
    parser.add_argument("--thresholds", type=_numbers, default=THRESHOLDS, help="such as 0.2,0.1,0.05")
    parser.add_argument("--files", action="store_true", help="also the captions of each window")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the recipe")
    options = parser.parse_intermixed_args()
    try:
        recipe = load_recipe(options.pipeline, options.overrides)
        found = calibrate(recipe, read_sounds(options.sounds), options.windows, options.thresholds, options.files)
    except OpenAVSError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0


def read_sounds(folder: Path) -> dict[str, Waveform]:
    """Return the audio of the files of a folder by name; files without audio are skipped.

    Raises:
        InputError: the folder has no audio.
    """
    sounds = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            audio = read_audio(path)
        except InputError as error:
            sys.stderr.write(f"skipped: {error}\n")
            continue
        if audio is not None:
            sounds[path.name] = audio
    if not sounds:
        raise InputError(f"{folder} has no audio; give a folder of audio or video files")
    return sounds


@torch.inference_mode()
def calibrate(
    recipe: Recipe,
    sounds: dict[str, Waveform],
    lengths: Sequence[float] = (),
    thresholds: Sequence[float] = THRESHOLDS,
    files: bool = False,
) -> dict[str, Any]:
    """Return the figures of the module's docstring.

    Raises:
        InputError: the captioner of the recipe is not CLAP.
    """
    captioner = instantiate(*check_backends(recipe)["captioner"])
    if not isinstance(captioner, ZeroShotCaptioner):
        raise InputError(f"the captioner of {recipe.name} is {recipe.captioner.use}; give a recipe with clap")
    own = float(captioner._scale())
    found: dict[str, Any] = {
        "logit_scale": {"checkpoint": round(own, 3), "used": captioner.logit_scale or round(own, 3)},
        "files": len(sounds),
        "windows": [],
    }
    settings: list[tuple[float, float | None]] = [(recipe.audio.window_seconds, recipe.audio.context_seconds)]
    for length, context in [*settings, *((length, None) for length in lengths)]:
        windows = [
            (name, audio_window(audio, at, 1.0, length, context=context))
            for name, audio in sounds.items()
            for at in planned_times(audio.duration, 1.0)
        ]
        audible = [(name, window) for name, window in windows if window.audio.dbfs >= recipe.audio.silence_dbfs]
        rows = combine_scales([window for _, window in audible], captioner._score, softmax=True)
        scored = [(name, window, row) for (name, window), row in zip(audible, rows, strict=True) if row is not None]
        part = {"window": length, "context": context, **_figures(captioner, scored, thresholds)}
        found["windows"].append(part)
        if files and context == recipe.audio.context_seconds and length == recipe.audio.window_seconds:
            part["captions"] = [
                {"file": name, "start": round(window.start, 2), "captions": _texts(captioner, window, row)}
                for name, window, row in scored
            ]
    return found


Scored = Sequence[tuple[str, AudioWindow, Any]]


def _figures(captioner: ZeroShotCaptioner, scored: Scored, thresholds: Sequence[float]) -> dict[str, Any]:
    best = [max((c.score or 0.0 for c in own), default=0.0) for own in _captions(captioner, scored, 0.0)]
    shares = []
    for threshold in thresholds:
        captions = _captions(captioner, scored, threshold)
        named = [any(lexicon(caption.text) for caption in own) for own in captions]
        shares.append({"threshold": threshold, "captioned": _share(map(bool, captions)), "named": _share(named)})
    percentiles = [round(float(np.percentile(best, q)), 3) for q in (10, 50, 90)] if best else None
    return {"audible": len(scored), "best_score": percentiles, "thresholds": shares}


def _captions(captioner: ZeroShotCaptioner, scored: Scored, threshold: float) -> list[tuple[Caption, ...]]:
    """Return the captions of each window that reach a threshold."""
    usual, captioner.selector.threshold = captioner.selector.threshold, threshold
    found = [strong_captions(captioner.selector.captions(row, window, "")) for _, window, row in scored]
    captioner.selector.threshold = usual
    return found


def _share(flags: Iterable[bool]) -> float:
    flags = list(flags)
    return round(sum(flags) / len(flags), 3) if flags else 0.0


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _texts(captioner: ZeroShotCaptioner, window: AudioWindow, row: Any) -> dict[str, float]:
    return {c.text: round(c.score or 0.0, 3) for c in strong_captions(captioner.selector.captions(row, window, ""))}


if __name__ == "__main__":
    raise SystemExit(main())
