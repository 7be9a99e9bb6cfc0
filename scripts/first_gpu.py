"""The first minutes on a GPU: what no CPU can show, in at most nine minutes, without a network and without weights.

    python scripts/first_gpu.py --out eval/first_gpu.json     # on a GPU
    python scripts/first_gpu.py --write                       # that file's figures, into docs/performance.md
    python scripts/first_gpu.py --size tiny --device cpu      # the same steps with small networks, to try the script

Each step runs in a process of its own and is killed when its time is over; the others go on. Networks have their
published sizes and random weights. The result is one JSON object, from which a section of docs/performance.md is made.

adapters    the tests marked `gpu`: every adapter against the CPU in three dtypes
detector    Grounding DINO base in float32, TF32 and bfloat16, one frame and eight at a time, with the error of each
pipelines   frames to masks with `openavs`, `sam3` and `openavs-fast`: clips a second for 1, 4 and 16 things, in batches
            of 1, 8 and 32 frames; share of the roofline, synchronizations, bytes between host and device
compile     the pipeline of `openavs` as it is, compiled, and with CUDA graphs: the first call and those after it
peers       the packages of other systems beside openavs, if `make test-peers` has installed them
listen      CLAP on 64 windows
language    Qwen3-4B in bfloat16: 1500 tokens read, 365 written
waits       the lines at which one clip waits for the GPU
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "eval" / "bench")]
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "eval" / "first_gpu.json"
FRAMES = 8
RECIPES, THINGS, BATCHES = ("openavs", "sam3", "openavs-fast"), (1, 4, 16), (1, 8, 32)
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


def pipelines(setting: Setting) -> dict[str, Any]:
    """Times the way from frames to masks by recipe, number of things and frames per batch."""
    rows = []
    for name in RECIPES:
        folders = save_networks(setting, name)
        for things in THINGS if setting.full else THINGS[:2]:
            for batch in BATCHES if setting.full else BATCHES[:1]:
                made = build(setting, folders, name, things, batch)
                rows.append({"what": name, "things": things, "batch": batch} | throughput(setting, made, things))
    return {"rows": rows}


def compiled(setting: Setting) -> dict[str, Any]:
    """Times the pipeline of `openavs` as it is, compiled, and with CUDA graphs."""
    folders = save_networks(setting, "openavs")
    rows, first = [], {}
    for how in (False, True, "reduce-overhead") if setting.full else (False, "aot_eager"):
        made = build(setting, folders, "openavs", 4, FRAMES, how)
        name = f"compile={str(how).lower()}"
        started = time.perf_counter()
        made(clip_of(setting, 4))
        first[name] = round(time.perf_counter() - started, 1)
        rows.append({"what": f"openavs, {name}", "things": 4, "batch": FRAMES} | throughput(setting, made, 4))
    return {"rows": rows, "first_call_seconds": first}


def save_networks(setting: Setting, recipe: str) -> dict[str, Path]:
    """Save detector and segmenter of a recipe with random weights; `sam3` is one network."""
    from workloads import save_detector, save_sam2, save_sam3

    place, size, image = setting.folder / recipe, setting.size, setting.images[0]
    if recipe == "sam3":
        if setting.full:
            return {"segmenter": save_sam3(place, setting.device)}
        from tests.tiny_sams import make_sam3

        return {"segmenter": make_sam3(place)}
    detector, segmenter = {"openavs": ("base", "large"), "openavs-fast": ("mm-tiny", "tiny")}[recipe]
    return {
        "detector": save_detector(place / "detector", size, image, detector, setting.device),
        "segmenter": save_sam2(place / "segmenter", size, segmenter, setting.device),
    }


def build(
    setting: Setting, folders: dict[str, Path], name: str, things: int, batch: int, compile_: bool | str = False
) -> Any:
    """Builds the pipeline from frames to masks of a recipe: captions are given, with `things` masks a frame."""
    from openavs.config.recipe import recipe_from_dict
    from openavs.pipeline.pipeline import Pipeline

    each = -(-things // len(phrases_of(things)))
    small = {"shortest_edge": 480} if name == "openavs-fast" and setting.full else {}
    squares = {"image_size": 448} if name == "openavs-fast" and setting.full else {}
    one = {"use": "sam3", "floor": 0.0, "max_candidates": each, "model": str(folders["segmenter"])}
    detector = {
        "use": "grounding-dino",
        "model": str(folders.get("detector")),
        "floor": 0.0,
        "batch_size": batch,
        **small,
    }
    segmenter = {"use": "sam2", "model": str(folders["segmenter"]), "batch_size": batch, **squares}
    if compile_:
        detector["compile"] = segmenter["compile"] = compile_
    recipe: dict[str, Any] = {
        "name": name,
        "captioner": {"use": "oracle"},
        "translator": {"use": "none"},
        "detector": None if name == "sam3" else detector,
        "segmenter": one if name == "sam3" else segmenter,
        "filtering": {"box_threshold": 0.0, "nms_iou": None, "max_boxes": things, "max_per_phrase": each},
        "batch": {"frames": batch},
        "device": setting.device,
        "offline": True,
    }
    return Pipeline.from_recipe(recipe_from_dict(recipe))


def phrases_of(things: int) -> tuple[str, ...]:
    """One phrase per thing, as far as there are words."""
    from workloads import PHRASES

    return PHRASES[:things]


def clip_of(setting: Setting, things: int) -> Any:
    """A clip with a sound in every frame."""
    from workloads import standard

    frames = BATCHES[-1] if setting.full else 2
    return replace(standard(setting.size.image, frames), phrases=phrases_of(things)).clip()


def throughput(setting: Setting, pipeline: Any, things: int) -> dict[str, Any]:
    """Clips a second (five frames each) after a warm run, and what a frame costs besides."""
    clip = clip_of(setting, things)
    frames = len(clip.times)
    found = setting.measure(lambda: pipeline(clip), frames, 2)
    counted = count(setting, lambda: pipeline(clip))
    assert found["ms"] is not None
    seconds = found["ms"] / 1e3
    share = counted["flop"] / frames / seconds / peak_rate(setting)
    figures = {"clips_per_s": round(1 / (5 * seconds), 3), "roofline_share": round(share, 4)}
    return (
        found | figures | {key: round(counted[key] / frames, 3) for key in ("syncs", "to_device_mb", "from_device_mb")}
    )


def count(setting: Setting, work: Callable[[], object]) -> dict[str, float]:
    """Counts operations of one run, its waits for the GPU, and the megabytes copied to the device and from it."""
    from torch.utils.flop_counter import FlopCounterMode

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if setting.device != "cpu":
            torch.cuda.set_sync_debug_mode("warn")
        work()
        if setting.device != "cpu":
            torch.cuda.set_sync_debug_mode("default")
    copies = Copies()
    with FlopCounterMode(display=False) as flops, copies:
        work()
    return {
        "flop": float(flops.get_total_flops()),
        "syncs": sum("synchroniz" in str(w.message).lower() for w in caught),
        "to_device_mb": copies.to_device / 1e6,
        "from_device_mb": copies.from_device / 1e6,
    }


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that are copied between host and device, of tensors; other threads are not seen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.to_device = self.from_device = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _COPIES and isinstance(output, torch.Tensor):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if source.device.type != output.device.type:
                size = output.numel() * output.element_size()
                self.to_device += size * (output.device.type != "cpu")
                self.from_device += size * (output.device.type == "cpu")
        return output


_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


def peak_rate(setting: Setting) -> float:
    """Operations a second of products of large matrices in bfloat16, the roof of the roofline."""
    side = 8192 if setting.full else 256
    one = torch.randn(side, side, device=setting.device).to(torch.bfloat16)
    found = setting.measure(lambda: one @ one, 1, 10)["ms"]
    return 2 * side**3 / max((found or 0) / 1e3, 1e-6)


def peers(setting: Setting) -> dict[str, Any]:
    """Runs `compare_systems.py --peers real` on the device."""
    folders = [ROOT / "build" / name for name in ("peers", "timm")]
    if not all((folder / ".installed").exists() for folder in folders):
        return {"skipped": "the packages of other systems are not installed: make test-peers"}
    size = ("--size", "real", "--frames", "4") if setting.full else ("--frames", "1")
    systems = ("--systems", "grounded_sam2_bf16", "sam2_package_bf16", "sam2_package_local")
    script = ROOT / "eval" / "bench" / "compare_systems.py"
    command = [sys.executable, script, "--peers", "real", "--json", "--device", setting.device, "--repeats", "1", *size]
    path = os.pathsep.join(map(str, (ROOT, *folders)))
    words = [*command, *systems, "--only", "ratios", "--workloads", "standard"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    figures: dict[str, Any] = json.loads(done.stdout)
    names = ("ours", *systems[1:])
    return {"seconds_a_frame": {name: figures[f"seconds.{name}"] for name in names}, "figures": figures}


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
    height, width = setting.size.image
    images, boxes = (
        list(setting.images),
        [[(width * i / 5, height / 4, width * (i + 1) / 5, height * 3 / 4) for i in range(4)]] * FRAMES,
    )
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
    "adapters": (adapters, 110),
    "detector": (detector, 60),
    "pipelines": (pipelines, 100),
    "compile": (compiled, 90),
    "peers": (peers, 60),
    "listen": (listen, 20),
    "language": (language, 40),
    "waits": (waits, 20),
    "jobs": (jobs, 40),
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


_COLUMNS = {
    "what": "network or recipe",
    "dtype": "dtype",
    "things": "things",
    "batch": "batch",
    "ms": "ms",
    "clips_per_s": "clips/s",
    "roofline_share": "share of the roofline",
    "syncs": "synchronizations",
    "to_device_mb": "MB to the device",
    "from_device_mb": "MB from it",
    "peak_gb": "peak memory, GB",
}


def table(found: dict[str, Any]) -> str:
    """The figures of all steps that have rows, in Markdown."""
    lines = [tuple(_COLUMNS.values()), ("---",) * len(_COLUMNS)]
    lines += [
        tuple("" if row.get(key) is None else str(row[key]) for key in _COLUMNS)
        for step in found["steps"].values()
        for row in step.get("rows", ())
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def section(found: dict[str, Any] | None) -> str:
    """The section of docs/performance.md about a run; without one, that there was none."""
    if found is None:
        return "Not run yet: no GPU was available."
    failed = [f"{name}: {step['error']}" for name, step in found["steps"].items() if "error" in step]
    others = found["steps"].get("peers", {}).get("seconds_a_frame", {})
    lines = [
        f"{found['device']}, torch {found['torch']}, {found['date']}; milliseconds and copies are those of a frame."
    ]
    lines += ["", table(found)]
    if others:
        text = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in others.items())
        lines += ["", f"Other systems, milliseconds a frame at published sizes: {text}."]
    if failed:
        lines += ["", f"Steps that failed: {'; '.join(failed)}."]
    return "\n".join(lines)


def in_page(text: str, written: str) -> str:
    """The page with the section between its markers."""
    head, rest = text.split("<!-- first_gpu -->\n")
    return f"{head}<!-- first_gpu -->\n{written}\n<!-- /first_gpu -->{rest.partition('<!-- /first_gpu -->')[2]}"


def results() -> dict[str, Any] | None:
    """The committed results of a run on a GPU, if there are any."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None


def main() -> int:
    """Runs the steps and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path, help="also write the JSON into this file, after each step")
    parser.add_argument("--write", action="store_true", help="only write the section of docs/performance.md")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(in_page(PAGE.read_text(encoding="utf-8"), section(results())), encoding="utf-8")
        return 0
    if options.device != "cpu" and not torch.cuda.is_available():
        print("first_gpu: torch finds no CUDA GPU; try --size tiny --device cpu", file=sys.stderr)
        return 2
    if options.step:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(options.device, options.size == "real", Path(folder))
            print(json.dumps(STEPS[options.step][0](setting)))
        return 0
    name = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "size": options.size}
    found |= {"date": time.strftime("%Y-%m-%d"), "steps": {}}
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
