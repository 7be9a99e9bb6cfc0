"""Compares openavs with other systems on the same weights: work, time and memory.

    python eval/bench/compare_systems.py --json                              small networks: seconds, run by the tests
    python eval/bench/compare_systems.py --size reduced --json               published networks, reduced images: an hour
    python eval/bench/compare_systems.py --size real --frames 1 --json       published networks and sizes
    python eval/bench/compare_systems.py --peers real --json                 packages of other systems: peers.py
    python eval/bench/compare_systems.py --only growth --clips 10,100,1000   linear cost and flat memory?

All systems run alternately in one process, on one thread by default, with random weights from a seed and the same
frames in memory (`workloads.py`): three phrases, two boxes each. The other systems are short re-implementations
(`baselines.py`), and the detection pipeline of transformers, which is the original. `--peers real` adds the packages of
other systems (`peers.py`), with SAM 2 unless `--segmenter sam`.

- `ratio.X`: seconds of X over those of openavs, the median over the repeats of the ratio within a repeat; `spread.X`:
  the smallest and the largest. On one thread of a CPU these are CPU seconds, which other processes change little;
  `ratio_wall.X` is by the wall clock. `ratio.silent_half.X` and `ratio.static.X`: on a clip with a silent half, and on
  one whose frames are all the same.
- `agreement`: IoU of the masks of openavs in its own dtype (bfloat16 if that was float32) with those in float32, on two
  frames. Random scores have near ties, which either dtype may break: `.same_boxes` is the IoU of masks whose boxes
  agree, `.same_boxes_share` their share. `agreement.tiny` is that of the embedded models, which are trained;
  `agreement.X_bf16` compares the autocast of a system with its own float32. `agreement.X` of the others is the IoU with
  the masks of openavs, both in float32 and with the same captions: 1 means that both compute the same.
- `imitation.X`: with `--peers real`, CPU seconds of the re-implementation of the package X over those of X, the median
  of the ratios within a repeat; `imitation.agreement.X`: IoU of the masks of both.
- `overhead`: seconds of a run of openavs over those within the forward passes of its models, minus 1; `overhead.tiny`:
  the same with the recipe `tiny`, its captioner and language model included; `overhead.replayed`: CPU seconds of a run
  over those of the same forward passes alone, on recorded tensors, minus 1.
- `seconds.X`, `cpu_seconds.X`, `stage.X.*`: per frame; `peak_mb.X`: memory above that at the start of the run.
- `growth.N.*`: rates and memory over N clips of `tiny`; `.relative`: clips per CPU second over those of a run of the
  fewest clips beside each block of ten; `growth.spread.*`: the largest over the smallest, minus 1;
  `growth.early_over_late`: `.relative` in the first half of the longest run over that in the second.
- `work.X.*`: images through the detector and the image encoder, boxes through the decoder, and the number of calls.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from harness import argument_parser, print_figures, ratios, run_alternately, use_one_thread, working_folder

if "--threads" not in sys.argv:
    use_one_thread()

import torch
from baselines import Baselines
from profiler import Call, Networks, Profile, profile, resident_mb, synchronize
from scipy.optimize import linear_sum_assignment
from transformers.utils import logging as transformers_logging
from workloads import BOXES, SIZES, WORKLOADS, Workload, build_pipeline, save_models, synthetic_clips, tiny_pipeline

from openavs.pipeline.pipeline import Pipeline
from openavs.structures.masks import RLE, iou as box_iou, mask_to_rle, rle_to_mask
from openavs.structures.types import Box, Clip, ClipResult, FrameResult

logger = logging.getLogger("compare_systems")

PARTS = ("ratios", "agreement", "overhead", "growth")
# Compared on all workloads; the others on the standard one.
FULL_COMPARISON = ("grounded_sam2_fp32", "grounded_sam2_bf16", "sam2_package_bf16")
ONE_BY_ONE = ("naive", "lang_sam", "autodistill_package")  # every phrase is a caption of its own
AGREEMENT_FRAMES = 2
SAME_BOX = 0.98  # IoU from which two boxes are the same choice
TINY_AGREEMENT_CLIPS, TINY_OVERHEAD_CLIPS = 12, 6
BLOCK = 10  # clips; longer runs repeat them, so that every block is the same work
MIN_BLOCKS = 5  # per run length; short runs are repeated

PackedFrame = list[tuple[str, Box, RLE]]
"""Phrase, box and mask of the segments of one frame."""


def main() -> None:
    """Parse the options, measure and print."""
    options = parse_options(sys.argv[1:])
    logging.basicConfig(level="INFO" if options.verbose else "WARNING", format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with working_folder(options.keep) as folder:
        print_figures(measure(options, folder), options.json)


def parse_options(words: list[str]) -> argparse.Namespace:
    """Parse the command line; the default dtype depends on size and device."""
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--segmenter", choices=("sam", "sam2"), help="default: sam, with --peers real sam2")
    parser.add_argument("--peers", choices=("imitated", "real"), default="imitated", help="real: the packages, too")
    parser.add_argument("--frames", type=int, default=10, help="of a workload")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="of openavs; default: float32 for small networks on a CPU, else bfloat16")
    parser.add_argument("--batch", type=int, default=1, help="frames per batch of openavs")
    parser.add_argument("--systems", nargs="*", help="the systems to compare with; default: all")
    parser.add_argument("--workloads", nargs="*", choices=WORKLOADS, default=list(WORKLOADS), help="of the ratios")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS[:3])
    parser.add_argument("--clips", default="10,100", help="for growth: numbers of clips, rising multiples of 10")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for the models")
    parser.add_argument("--verbose", action="store_true", help="log every run on stderr")
    options = parser.parse_args(words)
    options.segmenter = options.segmenter or ("sam2" if options.peers == "real" else "sam")
    small_on_cpu = options.size == "small" and options.device == "cpu"
    options.dtype = options.dtype or ("float32" if small_on_cpu else "bfloat16")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of the selected parts by their printed names."""
    names = ("size", "frames", "repeats", "segmenter", "threads", "device", "dtype")
    figures = {name: getattr(options, name) for name in names}
    if set(options.only) - {"growth"}:
        comparison = Comparison(options, folder)
        if "ratios" in options.only:
            figures |= ratio_figures(comparison)
        if "agreement" in options.only:
            figures |= agreement_figures(comparison)
        if "overhead" in options.only:
            figures |= overhead_figures(comparison)
    if "growth" in options.only:
        figures |= growth_figures([int(count) for count in options.clips.split(",")])
    return figures


class Comparison:
    """The saved models, and the systems with these weights in memory.

    `clock` is `cpu` if CPU seconds are the whole cost, since other processes change them little, else `wall`.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.size = SIZES[options.size]
        image = self.workload().images[0]
        folder /= self.size.name
        network = "packaged" if options.peers == "real" else "tiny"
        self.models = save_models(folder, self.size, options.segmenter, image, network=network)
        self.baselines = Baselines(*self.models, options.device)
        self.systems = dict(self.baselines.systems)
        transformers = {"detector": self.baselines.detector, "segmenter": self.baselines.predictor.model}
        self.networks = dict.fromkeys(self.systems, transformers)
        self.imitations: dict[str, str] = {}
        if options.peers == "real":
            self.add_peers(folder)
        self.ours = self.pipeline(options.dtype)
        self.clock = "cpu" if options.threads == 1 and options.device == "cpu" else "wall"
        self.selected = [name for name in self.systems if name in (options.systems or self.systems)]

    def add_peers(self, folder: Path) -> None:
        """Add the packages of other systems."""
        from peers import IMITATIONS, Peers

        peers = Peers(self.baselines, *self.models, folder)
        self.systems |= peers.systems
        self.networks |= peers.networks
        self.imitations = {name: IMITATIONS[name] for name in peers.systems if name in IMITATIONS}

    def pipeline(self, dtype: str, joint: bool = True) -> Pipeline:
        """Build the pipeline of openavs; see `build_pipeline`."""
        options = {"device": self.options.device, "joint": joint, "batch": self.options.batch}
        return build_pipeline(*self.models, dtype=dtype, **options)

    def workload(self, name: str = "standard") -> Workload:
        """Return a workload of the selected size."""
        return WORKLOADS[name](self.size.image, self.options.frames)

    def run(self, system: str | Pipeline, workload: Workload) -> Profile:
        """Profile one pass of `ours`, a baseline by its name, or another pipeline of openavs.

        Raises:
            SystemExit: a processed frame has not two boxes of each phrase, so the systems' work would differ.
        """
        processed = workload.sounding
        pipeline = self.ours if system == "ours" else system
        if isinstance(pipeline, Pipeline):
            found = profile(stream(pipeline, workload.clip()), Networks.of_pipeline(pipeline), packed)
        else:
            processed = (True,) * len(workload.images)
            networks = Networks(**self.networks[pipeline])
            found = profile(partial(self.systems[pipeline], workload), networks, packed)
        counts = [len(frame) for frame in found.outputs]
        if counts != [BOXES * len(workload.phrases) * flag for flag in processed]:
            raise SystemExit(f"the workload is uneven: {counts} boxes in its frames; choose another seed")
        return found


def stream(pipeline: Pipeline, clip: Clip) -> Callable[[Any], Iterator[FrameResult]]:
    """Return a function that starts a pipeline on a clip, for `profile`."""
    return lambda context: pipeline.stream(clip, context=context)


def packed(output: Any) -> PackedFrame:
    """Return a frame of any system with run-length encoded masks."""
    if isinstance(output, FrameResult):
        return [(segment.phrase, segment.box, segment.mask) for segment in output.segments]
    return [(phrase, box, mask_to_rle(mask > 0)) for phrase, box, mask in output]


# ------------------------------------------------------------------------------------------------------------ ratios


def ratio_figures(comparison: Comparison) -> dict[str, Any]:
    """Compare the systems on all workloads; of the standard one print everything else, too."""
    figures: dict[str, Any] = {}
    for name in comparison.options.workloads:
        standard = name == "standard"
        systems = [system for system in comparison.selected if standard or system in FULL_COMPARISON]
        runs = profile_systems(comparison, name, ["ours", *systems])
        prefix = "" if standard else f"{name}."
        by_clock = {system: ratios(runs[system], runs["ours"], comparison.clock) for system in systems}
        by_wall = {system: ratios(runs[system], runs["ours"], "wall") for system in systems}
        figures |= {f"ratio.{prefix}{system}": round(median(own), 3) for system, own in by_clock.items()}
        figures |= {f"ratio_wall.{prefix}{system}": round(median(own), 3) for system, own in by_wall.items()}
        figures |= {
            f"spread.{prefix}{system}": [round(min(own), 3), round(max(own), 3)] for system, own in by_clock.items()
        }
        if standard:
            figures |= details(runs, comparison.options.frames)
            for system, imitation in comparison.imitations.items():
                if {system, imitation} <= runs.keys():
                    own = ratios(runs[imitation], runs[system], comparison.clock)
                    figures[f"imitation.{system}"] = round(median(own), 3)
            if "naive" in systems:
                figures["ratio.naive_encoding_per_phrase"] = round(naive_encoding_per_phrase(runs), 3)
        else:
            figures |= {f"work.{prefix}ours.{what}": count for what, count in sorted(runs["ours"][-1].work.items())}
    return figures


def profile_systems(comparison: Comparison, name: str, systems: list[str]) -> dict[str, list[Profile]]:
    """Run every system once per repeat; first, one frame to warm up the models."""
    workload = comparison.workload(name)
    for system in systems:
        if not comparison.size.published or system in ("ours", *FULL_COMPARISON):
            comparison.run(system, workload.first(1))

    def run(system: str) -> Profile:
        found = comparison.run(system, workload)
        logger.info("%s, %s: %.2f s, %.2f CPU s, %s", name, system, found.wall, found.cpu, found.stages)
        return found

    return run_alternately({system: partial(run, system) for system in systems}, comparison.options.repeats)


def naive_encoding_per_phrase(runs: dict[str, list[Profile]]) -> float:
    """Return the wall-clock ratio of the naive loop if the boxes of a phrase shared an encoding, from its stages."""
    return median(
        (naive.wall - naive.stages["encode"] * (1 - 1 / BOXES)) / ours.wall
        for ours, naive in zip(runs["ours"], runs["naive"], strict=True)
    )


def details(runs: dict[str, list[Profile]], frames: int) -> dict[str, Any]:
    """Return seconds per frame, stages, memory and work of every system: medians; work from the last repeat."""
    figures: dict[str, Any] = {}
    for name, own in runs.items():
        figures[f"seconds.{name}"] = round(median(run.wall for run in own) / frames, 4)
        figures[f"cpu_seconds.{name}"] = round(median(run.cpu for run in own) / frames, 4)
        for stage in own[0].stages:
            figures[f"stage.{name}.{stage}"] = round(median(run.stages[stage] for run in own) / frames, 4)
        figures[f"peak_mb.{name}"] = round(median(run.peak_mb for run in own), 1)
        figures |= {f"work.{name}.{what}": count for what, count in sorted(own[-1].work.items())}
    return figures


# --------------------------------------------------------------------------------------------------------- agreement


def agreement_figures(comparison: Comparison) -> dict[str, Any]:
    """Compare the masks of two dtypes and those of the baselines with ours."""
    reduced = "bfloat16" if comparison.options.dtype in ("float32", "fp32") else comparison.options.dtype
    workload = comparison.workload().first(AGREEMENT_FRAMES)

    def masks(system: str | Pipeline) -> list[PackedFrame]:
        return comparison.run(system, workload).outputs

    others = {name: masks(name) for name in comparison.selected if name != "hf_pipeline"}
    exact, low = (masks(comparison.pipeline(dtype)) for dtype in ("float32", reduced))
    pairs = {"agreement": (low, exact)}
    if one_by_one := others.keys() & set(ONE_BY_ONE):
        separate = masks(comparison.pipeline("float32", joint=False))
        pairs |= {f"agreement.{name}": (others[name], separate) for name in sorted(one_by_one)}
    for name in sorted(others.keys() - set(ONE_BY_ONE)):
        float32 = f"{name.removesuffix('_bf16')}_fp32"
        reference = others.get(float32) if name.endswith("_bf16") else exact
        if reference is not None:
            pairs[f"agreement.{name}"] = (others[name], reference)
    for name, imitation in comparison.imitations.items():
        if {name, imitation} <= others.keys():
            pairs[f"imitation.agreement.{name}"] = (others[name], others[imitation])
    figures: dict[str, Any] = {}
    for name, pair in pairs.items():
        figures |= agreement(name, *pair)
    return figures | {"agreement.tiny": round(tiny_agreement(reduced), 4), "agreement.dtype": reduced}


def agreement(name: str, one: list[PackedFrame], other: list[PackedFrame]) -> dict[str, float]:
    """Return the mean IoU of paired masks; of those whose boxes agree, too, and the share of these."""
    same = [mask for box, mask in pair_segments(one, other) if box >= SAME_BOX]
    figures = {name: mean_iou(one, other), f"{name}.same_boxes_share": len(same) / sum(map(len, other))}
    if same:
        figures[f"{name}.same_boxes"] = mean(same)
    return {key: round(value, 4) for key, value in figures.items()}


def tiny_agreement(dtype: str) -> float:
    """Return the mean IoU of the masks of the embedded models in a dtype and in float32."""
    clips = synthetic_clips(TINY_AGREEMENT_CLIPS)
    frames = []
    for name in ("float32", dtype):
        pipeline = tiny_pipeline("captioner={use: oracle}", "translator={use: none}", f"dtype={name}")
        frames.append([packed(frame) for clip in clips for frame in pipeline.stream(clip)])
    return mean_iou(*frames)


def mean_iou(one: list[PackedFrame], other: list[PackedFrame]) -> float:
    """Return the mean IoU of paired masks over all segments; a segment without a partner counts 0."""
    return mean(mask for _, mask in pair_segments(one, other))


def pair_segments(one: list[PackedFrame], other: list[PackedFrame]) -> list[tuple[float, float]]:
    """Pair the segments of each phrase in each frame for the largest overlap; return the IoU of boxes and of masks."""
    overlaps: list[tuple[float, float]] = []
    for a, b in zip(one, other, strict=True):
        for phrase in sorted({name for name, _, _ in (*a, *b)}):
            rows, columns = ([segment for segment in frame if segment[0] == phrase] for frame in (a, b))
            pairs = [[(box_iou(p[1], q[1]), mask_iou(p[2], q[2])) for q in columns] for p in rows]
            total = [[box + mask for box, mask in row] for row in pairs]
            chosen = list(zip(*linear_sum_assignment(total, maximize=True), strict=True)) if rows and columns else []
            overlaps += [pairs[i][k] for i, k in chosen]
            overlaps += [(0.0, 0.0)] * (max(len(rows), len(columns)) - len(chosen))
    return overlaps


def mask_iou(one: RLE, other: RLE) -> float:
    """Return the IoU of two masks; 1 for two empty ones."""
    a, b = rle_to_mask(one), rle_to_mask(other)
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


# ---------------------------------------------------------------------------------------------------------- overhead


def overhead_figures(comparison: Comparison) -> dict[str, Any]:
    """Compare runs of the pipeline with the forward passes in them, and show the time outside of them."""
    workload = comparison.workload()
    runs = [comparison.run("ours", workload) for _ in range(comparison.options.repeats + 1)][1:]
    figures = overhead("overhead", runs, comparison.clock)
    figures["overhead.replayed"] = round(replayed_overhead(comparison, workload), 4)
    figures |= milliseconds("overhead.ms", runs, len(workload.images))
    pipeline, clips = tiny_pipeline(), synthetic_clips(TINY_OVERHEAD_CLIPS)
    networks = Networks.of_pipeline(pipeline)
    passes = [
        [profile(stream(pipeline, clip), networks) for clip in clips] for _ in range(comparison.options.repeats + 1)
    ]
    runs = [total(own) for own in passes[1:]]
    figures |= overhead("overhead.tiny", runs, comparison.clock)
    figures |= milliseconds("overhead.tiny.ms", runs, sum(len(clip.times) for clip in clips))
    return figures | {f"work.tiny.{what}": count for what, count in sorted(runs[-1].work.items())}


def overhead(name: str, runs: list[Profile], clock: str) -> dict[str, float]:
    """Return the seconds of a run over those within its forward passes, minus 1; medians."""
    found = {
        "cpu": median(run.cpu / run.forward_cpu - 1 for run in runs),
        "wall": median(run.wall / run.forward - 1 for run in runs),
    }
    return {name: round(found[clock], 4), f"{name}.wall": round(found["wall"], 4)}


def total(runs: list[Profile]) -> Profile:
    """Add up several profiles."""
    whole = Profile()
    for run in runs:
        for name in ("wall", "cpu", "forward", "forward_cpu"):
            setattr(whole, name, getattr(whole, name) + getattr(run, name))
        whole.work.update(run.work)
        for stage, seconds in run.stages.items():
            whole.stages[stage] = whole.stages.get(stage, 0.0) + seconds
    return whole


def milliseconds(name: str, runs: list[Profile], frames: int) -> dict[str, float]:
    """Return milliseconds per frame: in the models, in the rest, and by stage (models included)."""
    parts = {
        "models": median(run.forward for run in runs),
        "rest": median(run.wall - run.forward for run in runs),
        **{f"stage.{stage}": median(run.stages[stage] for run in runs) for stage in runs[0].stages},
    }
    return {f"{name}.{part}": round(1000 * seconds / frames, 3) for part, seconds in parts.items()}


def replayed_overhead(comparison: Comparison, workload: Workload) -> float:
    """Return the CPU seconds of a run over those of its recorded forward passes alone, minus 1; median."""
    calls: list[Call] = []
    start = stream(comparison.ours, workload.clip())
    with Networks.of_pipeline(comparison.ours).measured(Profile(), calls):
        list(start(None))
    return median(profile(start, Networks()).cpu / replay(calls) - 1 for _ in range(comparison.options.repeats))


@torch.inference_mode()
def replay(calls: list[Call]) -> float:
    """Repeat recorded forward passes and return their CPU seconds."""
    started = time.process_time()
    for module, args, kwargs in calls:
        module(*args, **kwargs)
    synchronize()
    return time.process_time() - started


# ------------------------------------------------------------------------------------------------------------ growth


class Block(NamedTuple):
    """The cost of `BLOCK` clips of a run."""

    wall: float
    cpu: float
    resident_mb: float


def growth_figures(counts: Sequence[int]) -> dict[str, Any]:
    """Return rates and memory of `tiny` over runs of more and more clips (rising multiples of `BLOCK`)."""
    pipeline, clips = tiny_pipeline(), synthetic_clips(BLOCK)
    next_block(pipeline.run(repeated(clips, BLOCK)))  # warm up
    gc.collect()
    figures: dict[str, Any] = {}
    rates, memory = [], []
    for count in counts:
        short, long = zip(
            *(
                pair
                for _ in range(max(1, MIN_BLOCKS * BLOCK // count))
                for pair in paired_blocks(pipeline, clips, count, counts[0])
            ),
            strict=True,
        )
        relative = ratios(short, long)  # clips per CPU second in the long run over those of the short run
        rates.append(median(relative))
        memory.append(max(block.resident_mb for block in long))
        figures |= {
            f"growth.{count}.clips_per_second": round(BLOCK / median(block.wall for block in long), 4),
            f"growth.{count}.clips_per_cpu_second": round(BLOCK / median(block.cpu for block in long), 4),
            f"growth.{count}.relative": round(rates[-1], 4),
            f"growth.{count}.resident_mb": round(memory[-1], 1),
        }
    half = len(relative) // 2  # of the longest run
    return figures | {
        "growth.spread.relative": round(max(rates) / min(rates) - 1, 4),
        "growth.spread.resident_mb": round(max(memory) / min(memory) - 1, 4),
        "growth.early_over_late": round(median(relative[:half]) / median(relative[half:]), 4),
    }


def paired_blocks(pipeline: Pipeline, clips: list[Clip], count: int, fewest: int) -> Iterator[tuple[Block, Block]]:
    """Yield each block of a run of `count` clips, after a block of a run of the fewest clips beside it."""
    run = pipeline.run(repeated(clips, count))
    for _ in range(count // BLOCK):
        long = next_block(run)
        yield next_block(pipeline.run(repeated(clips, fewest))), long


def next_block(run: Iterator[ClipResult]) -> Block:
    """Measure the next `BLOCK` clips of a run."""
    wall, cpu = time.perf_counter(), time.process_time()
    resident = max(resident_mb() for _ in islice(run, BLOCK))
    return Block(time.perf_counter() - wall, time.process_time() - cpu, resident)


def repeated(clips: list[Clip], count: int) -> Iterator[Clip]:
    """Yield `count` clips with different ids."""
    for number in range(count):
        yield replace(clips[number % len(clips)], id=f"clip-{number}")


if __name__ == "__main__":
    main()
