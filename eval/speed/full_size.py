"""Scores sets of the sizes of S4's and AVSS's test splits from PNG files: seconds and memory of `openavs score`.

Each is a process of its own. A process on Linux starts with the peak of memory of the one that started it, so nothing
large is imported here.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from masks import blob, label_map
from PIL import Image

SEMANTIC = {"v1s": (740, 5, (224, 224)), "v1m": (64, 5, (224, 224)), "v2": (750, 10, (640, 360))}  # clips, frames, size
POOL = 40  # different masks; the sets repeat them


def full_size() -> dict[str, Any]:
    """Seconds and memory of `openavs score` on sets of the sizes of the test splits."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_s4(root / "s4")
        write_avss(root / "avss")
        peaks = []
        for name, frames in (("s4", 3700), ("avss", 11520)):
            seconds, cpu, peak, scored = run_score(name, root / name, root / f"{name}-masks")
            if scored != frames:
                raise SystemExit(f"{name}: {scored} frames were scored, not {frames}")
            found |= {f"{name}_seconds": round(seconds, 2), f"{name}_cpu_seconds": round(cpu, 2)}
            found[f"{name}_frames"] = frames
            peaks.append(peak)
    return found | {"peak_mb": round(max(peaks), 1)}


def run_score(name: str, root: Path, predictions: Path) -> tuple[float, float, float, int]:
    """Wall seconds, CPU seconds and peak memory (2**20 bytes) of the command, and the frames that it scored."""
    words = ["score", name, "--root", str(root), "--predictions", str(predictions), "--json"]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([sys.executable, "-m", "openavs", *words], stdout=said)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        if child.returncode:
            raise SystemExit(f"`openavs {' '.join(words)}` failed with exit code {child.returncode}")
        said.seek(0)
        answer = json.load(said)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return seconds, usage.ru_utime + usage.ru_stime, peak, answer["frames"]


def write_s4(root: Path) -> None:
    """740 clips of 5 masks, 224 x 224, with soft predictions beside."""
    rng = np.random.default_rng(3)
    masks = [blob(rng) for _ in range(POOL)]
    soft = [np.clip(0.7 * m + 60 * rng.random(m.shape), 0, 255).astype(np.uint8) for m in masks]
    pairs = [(png(mask), png(guess)) for mask, guess in zip(masks, soft, strict=True)]
    rows = [f"v{n},0,dog_barking,test" for n in range(740)]
    root.mkdir()
    (root / "s4_meta_data.csv").write_text("\n".join(["name,start,category,split", *rows]) + "\n")
    for n in range(740):
        place = Path("test/dog_barking") / f"v{n}"
        for k in range(1, 6):
            truth, guess = pairs[(n * 5 + k) % POOL]
            write(root / "s4_data/gt_masks" / place / f"v{n}_{k}.png", truth)
            write(root.parent / "s4-masks" / place / f"v{n}_{k}.png", guess)


def write_avss(root: Path) -> None:
    """1,554 clips: 5 label maps of 224 x 224 for v1s and v1m, 10 of 640 x 360 for v2."""
    rng = np.random.default_rng(4)
    rows = ["vid,uid,s_min,s_sec,a_obj,split,label"]
    for subset, (clips, frames, size) in SEMANTIC.items():
        masks = [label_map(rng, size) for _ in range(POOL)]
        pairs = [(png(mask), png(np.roll(mask, 9, axis=1))) for mask in masks]
        for n in range(clips):
            rows.append(f"{n},{subset}-{n},0,0,dog,test,{subset}")
            place = f"{subset}/{subset}-{n}/labels_semantic"
            for k in range(frames):
                truth, guess = pairs[(n * frames + k) % POOL]
                write(root / place / f"{k}.png", truth)
                write(root.parent / "avss-masks" / place / f"{k}.png", guess)
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


def png(mask: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
