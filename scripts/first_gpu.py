"""The first minutes on a GPU: what no CPU can show, in at most nine minutes, without a network and without weights.

    python scripts/first_gpu.py --out first_gpu.json          # on a GPU
    python scripts/first_gpu.py --size tiny --device cpu      # the same steps with small networks, to try the script

Each step runs in a process of its own and is killed when its time is over; the others go on. Networks have their
published sizes and random weights. The result is one JSON object; the rows for docs/performance.md follow on stderr.

adapters    the tests marked `gpu`: every adapter against the CPU in three dtypes
detector    Grounding DINO base in float32, TF32 and bfloat16, one frame and eight at a time, with the error of each
segmenters  SAM ViT-H and SAM 2.1 large in bfloat16, one frame and eight at a time, four boxes each
listen      CLAP on 64 windows
language    Qwen3-4B in bfloat16: 1500 tokens read, 365 written
waits       the lines at which one clip waits for the GPU
compile     SAM ViT-B compiled, and with CUDA graphs: the first call and those after it
jobs        `label --workers 2` on one GPU, and a batch that does not fit into memory
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "eval" / "bench")]
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from openavs.structures.types import Box

FRAMES, BOXES = 8, 4
QUESTION, ANSWER = 1500, 365  # tokens; of sixty frames
WINDOWS = 64


@dataclass(frozen=True)
class Setting:
    """Device of the steps, size of the networks, and a folder for files."""

    device: str
    full: bool
    folder: Path

    @property
    def size(self) -> Any:
        """Sizes of networks and pictures."""
        from workloads import REAL, SMALL

        return REAL if self.full else SMALL

    @property
    def images(self) -> Any:
        """Frames of a moving scene."""
        from workloads import standard

        return standard(self.size.image, FRAMES).images

    @property
    def boxes(self) -> list[list[Box]]:
        """Four boxes a frame."""
        height, width = self.size.image
        one: list[Box] = [(width * i / 5, height / 4, width * (i + 1) / 5, height * 3 / 4) for i in range(BOXES)]
        return [one] * FRAMES

    def measure(self, work: Callable[[], object], items: int, repeats: int = 5) -> dict[str, float | None]:
        """Milliseconds an item, the median of some runs after a warm one, and the peak of the device's memory in GB."""
        gpu = self.device != "cpu"
        work()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats if self.full else 1):
            started = time.perf_counter()
            work()
            if gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        peak = round(torch.cuda.max_memory_allocated() / 1e9, 2) if gpu else None
        return {"ms": round(1e3 * statistics.median(seconds) / items, 2), "peak_gb": peak}


def adapters(setting: Setting) -> dict[str, Any]:
    """Runs the tests marked `gpu` and counts them."""
    report = setting.folder / "gpu.xml"
    tests = ["tests"] if setting.full else ["tests/models/test_device.py", "tests/models/test_resize.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run([*command, *tests], cwd=ROOT, capture_output=True, text=True)
    suite = ElementTree.parse(report).getroot()[0]
    counted = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return counted | {"failed": failed}


def detector(setting: Setting) -> dict[str, Any]:
    """Times Grounding DINO, and compares the encoded picture with that of float32 (relative root mean square)."""
    from workloads import PHRASES, save_detector

    from openavs.stages.detectors.grounding_dino import GroundingDinoDetector

    images, asked = list(setting.images), [PHRASES[:3]] * FRAMES
    path = save_detector(setting.folder / "dino", setting.size, images[0], "base", setting.device)
    rows, encoded = [], {}
    for name in ("float32", "tf32", "bfloat16"):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = name == "tf32"
        dtype = "bfloat16" if name == "bfloat16" else "float32"
        made = GroundingDinoDetector(model=str(path), device=setting.device, dtype=dtype)
        hook = made.model.register_forward_hook(
            lambda _, __, answer, name=name: encoded.update({name: answer.encoder_last_hidden_state_vision[:1]})
        )
        made.detect(images[:1], asked[:1])
        hook.remove()
        for batch in (1, FRAMES):
            made.batch_size = batch
            found = setting.measure(lambda made=made: made.detect(images, asked), FRAMES, 3)  # type: ignore[misc]
            rows.append({"what": "Grounding DINO base", "dtype": name, "batch": batch, **found})
    exact = encoded["float32"].float()
    error = {name: float((other.float() - exact).norm() / exact.norm()) for name, other in encoded.items()}
    return {"rows": rows, "relative_error": error}


def segmenters(setting: Setting) -> dict[str, Any]:
    """Times SAM and SAM 2.1."""
    from workloads import save_sam, save_sam2

    from openavs.stages.segmenters.sam import Sam2Segmenter, SamSegmenter

    images, rows = setting.images, []
    for what, save, network, adapter in (
        ("SAM ViT-H", save_sam, "huge", SamSegmenter),
        ("SAM 2.1 large", save_sam2, "large", Sam2Segmenter),
    ):
        path = save(setting.folder / network, setting.size, network, setting.device)
        made: Any = adapter(model=str(path), device=setting.device, dtype="bfloat16")
        for batch in (1, FRAMES):
            made.batch_size = batch
            found = setting.measure(lambda made=made: made.segment(images, setting.boxes), FRAMES, 3)  # type: ignore[misc]
            rows.append({"what": what, "dtype": "bfloat16", "batch": batch, **found})
        del made
    return {"rows": rows}


def listen(setting: Setting) -> dict[str, Any]:
    """Times CLAP on windows of two seconds."""
    import numpy as np
    from workloads import save_clap

    from openavs.stages.captioners.clap import ClapCaptioner
    from openavs.structures.types import AudioWindow, Waveform

    count = WINDOWS if setting.full else 4
    model = str(save_clap(setting.folder / "clap")) if setting.full else "openavs:tiny/clap"
    chance = np.random.default_rng(0)
    sounds = [Waveform((0.1 * chance.standard_normal(96_000)).astype(np.float32), 48_000) for _ in range(count)]
    windows = [AudioWindow(sound, float(i), i + 2.0) for i, sound in enumerate(sounds)]
    words = ["dog", "bell", "car"]  # the text tower runs once for a whole job
    made = ClapCaptioner(model=model, vocabulary=words, device=setting.device, batch_size=count)
    found = setting.measure(lambda: made.caption(windows), count, 3)
    return {"rows": [{"what": "CLAP, a window", "dtype": "float32", "batch": count, **found}]}


def language(setting: Setting) -> dict[str, Any]:
    """Times a question to Qwen3-4B and its answer."""
    from transformers import Qwen3ForCausalLM
    from workloads import language_config

    config, question, answer = language_config(), QUESTION, ANSWER
    if not setting.full:
        question, answer = 20, 4
        config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size = 64, 64, 2, 99
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
        config.layer_types = config.layer_types[:2]
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(setting.device):
        network: Any = Qwen3ForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(3, config.vocab_size, (1, question), device=setting.device)
    how = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def write(tokens: int) -> Any:
        with torch.inference_mode():
            return network.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, **how
            )

    rows = []
    for what, tokens in ((f"Qwen3-4B reads {question} tokens", 1), (f"and writes {answer}", answer)):
        found = setting.measure(lambda tokens=tokens: write(tokens), 1, 2)  # type: ignore[misc]
        rows.append({"what": what, "dtype": "bfloat16", "batch": 1, **found})
    return {"rows": rows}


def waits(setting: Setting) -> dict[str, Any]:
    """Lists the lines at which the `tiny` pipeline waits for the GPU during one clip."""
    from workloads import synthetic_clips

    from openavs.config.recipe import load_recipe
    from openavs.pipeline.pipeline import Pipeline

    pipeline = Pipeline.from_recipe(load_recipe("tiny", [f"device={setting.device}"]))
    [clip] = synthetic_clips(1)
    pipeline(clip)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if setting.device != "cpu":
            torch.cuda.set_sync_debug_mode("warn")
        result = pipeline(clip)
        if setting.device != "cpu":
            torch.cuda.set_sync_debug_mode("default")
    lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message).lower())
    return {"frames": len(result.frames), "waits": sum(lines.values()), "lines": dict(lines.most_common())}


def compiled(setting: Setting) -> dict[str, Any]:
    """Times SAM's image encoder as it is, compiled, and with CUDA graphs."""
    from workloads import save_sam

    from openavs.registry import Registry

    path = save_sam(setting.folder / "base", setting.size, "base", setting.device)
    some = slice(0, FRAMES if setting.full else 1)
    images, boxes = setting.images[some], setting.boxes[some]
    rows, first = [], {}
    for how in (False, True, "reduce-overhead") if setting.full else (False, "aot_eager"):
        options = {"model": str(path), "device": setting.device, "compile": how, "batch_size": FRAMES}
        made: Any = Registry("segmenter").build("sam", options)
        started = time.perf_counter()
        made.segment(images, boxes)
        first[str(how).lower()] = round(time.perf_counter() - started, 1)
        found = setting.measure(lambda made=made: made.segment(images, boxes), len(images), 3)  # type: ignore[misc]
        rows.append({"what": f"SAM ViT-B, compile={str(how).lower()}", "dtype": "auto", "batch": len(images), **found})
    return {"rows": rows, "first_call_seconds": first}


def jobs(setting: Setting) -> dict[str, Any]:
    """Labels clips with two workers on one device, and halves a batch that does not fit into memory."""
    os.environ["OPENAVS_CACHE"] = str(setting.folder / "cache")
    openavs = [sys.executable, "-m", "openavs"]
    videos, out = setting.folder / "videos", setting.folder / "labels"
    videos.mkdir()
    for seed in range(4 if setting.full else 2):
        words = ["synth", "clip", "--out", str(videos / f"{seed}.mp4"), "--seed", str(seed), "--seconds", "3"]
        subprocess.run([*openavs, *words], check=True, capture_output=True, cwd=ROOT)
    words = [
        "label",
        str(videos),
        "--pipeline",
        "tiny",
        "--workers",
        "2",
        "--shard-size",
        "1",
        "--out",
        str(out),
        "--json",
    ]
    started = time.perf_counter()
    done = subprocess.run([*openavs, *words, "--device", setting.device], capture_output=True, text=True, cwd=ROOT)
    seconds = round(time.perf_counter() - started, 1)
    said = json.loads(done.stdout) if done.returncode == 0 else done.stderr[-2000:]
    return {"exit_code": done.returncode, "seconds": seconds, "label": said, "out_of_memory": _shortage(setting)}


def _shortage(setting: Setting) -> dict[str, Any]:
    """A batch of eight where memory holds one frame and some more: masks and how often the batch was halved."""
    from workloads import save_sam

    from openavs.models.device import run_with_oom_backoff
    from openavs.stages.segmenters.sam import SamSegmenter

    path = save_sam(setting.folder / "short", setting.size, "base", setting.device)
    made = SamSegmenter(model=str(path), device=setting.device, batch_size=FRAMES)
    images, boxes = list(setting.images), setting.boxes
    expected = made.segment(images, boxes)
    peaks, tried = [], []
    if setting.device != "cpu":
        for number in (1, FRAMES):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            made.segment(images[:number], boxes[:number])
            peaks.append(torch.cuda.max_memory_reserved())
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((peaks[0] + sum(peaks) / 2) / 2 / total)

    def work(some: Any, own: Any) -> Any:
        tried.append(len(some))
        if setting.device == "cpu" and len(some) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory: injected")
        return made.segment(some, own)

    found = run_with_oom_backoff(work, images, boxes)
    pairs = [
        (a.score, b.score) for one, other in zip(expected, found, strict=True) for a, b in zip(one, other, strict=True)
    ]
    return {"batches": tried, "largest_difference": max(abs((a or 0) - (b or 0)) for a, b in pairs), "peaks": peaks}


STEPS: dict[str, tuple[Callable[[Setting], dict[str, Any]], int]] = {
    "adapters": (adapters, 120),
    "detector": (detector, 90),
    "segmenters": (segmenters, 80),
    "listen": (listen, 30),
    "language": (language, 60),
    "waits": (waits, 30),
    "compile": (compiled, 80),
    "jobs": (jobs, 50),
}
"""Each step and its seconds: nine minutes together."""
_PATIENCE = 5  # times the seconds with small networks, which run on slow and busy machines


def run_step(name: str, words: list[str], seconds: float) -> dict[str, Any]:
    """Runs a step in a process of its own: what it found, or an error in one sentence."""
    command = [sys.executable, str(Path(__file__).resolve()), "--step", name, *words]
    started = time.perf_counter()
    # In a group of its own, so that the processes which a step starts end with it.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return {"error": f"stopped after {seconds:g} s"}
    took = {"seconds": round(time.perf_counter() - started, 1)}
    if child.returncode:
        return took | {"error": (errors.strip().splitlines() or ["?"])[-1], "stderr": errors[-3000:]}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return took | found


def table(found: dict[str, Any]) -> str:
    """The rows for docs/performance.md, in Markdown."""
    lines = ["| network | dtype | batch | ms | peak memory, GB |", "|---|---|---|---|---|"]
    for step in found["steps"].values():
        for row in step.get("rows", ()):
            cells = (row["what"], row["dtype"], row["batch"], row["ms"], row["peak_gb"])
            lines.append(f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the steps and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path, help="also write the JSON into this file, after each step")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("first_gpu: torch finds no CUDA GPU; try --size tiny --device cpu", file=sys.stderr)
        return 2
    if options.step:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(options.device, options.size == "real", Path(folder))
            print(json.dumps(STEPS[options.step][0](setting)))
        return 0
    name = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "size": options.size, "steps": {}}
    for step in options.only:
        words = ["--device", options.device, "--size", options.size]
        seconds = STEPS[step][1] * (1 if options.size == "real" else _PATIENCE)
        found["steps"][step] = run_step(step, words, seconds)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found, indent=1))
    print(table(found), file=sys.stderr)
    return int(any("error" in step for step in found["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
