"""Measures the speed of scoring: against plain implementations, and on full-size test sets of PNG files.

    python eval/bench/metrics.py --json
    python eval/bench/metrics.py --full --json
    python eval/bench/metrics.py --tracks --json
    python eval/bench/metrics.py --expressions --json

Everything runs on one thread, both sides alternately on the same frames, and their outputs are compared: the F curves
bit for bit, the pixels per class exactly. A ratio is the median over the repeats, of CPU seconds, which other processes
change little; the `_wall` ratios and the seconds are printed beside it.

- `f_ratio`: F of one frame at 255 thresholds, float probabilities, against 255 passes over the pixels.
- `avss_ratio`: IoU and F of one frame of AVSS; ours takes the label map, the reference the 71 score maps of the
  published evaluation (softmax, argmax, histograms). `avss_counting_ratio` gives the reference the label map, too.
- `palette_ratio`: colors to class indices, against 71 comparisons of the whole image.

`--full` writes sets of the size of the test splits of S4 and AVSS (3,700 and 11,520 masks) to a temporary folder,
scores each with `openavs score` in a separate process, and prints the seconds and the larger peak of memory.

`--tracks` does the same, and nothing else, for a set of the size of AVISeg's test split: 205 clips of 61 frames, 1280 x
720, two or three true tracks of polygons and ten predicted tracks of run-length codes with ragged outlines in each.

`--expressions` does it for a set of the size of Ref-AVS's test splits: 4,972 expressions of ten frames about 1,088
objects, 60,600 PNG files of 1280 x 720 (`--size`), true masks with ragged outlines and predictions with soft ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from harness import (
    argument_parser,
    print_figures,
    ratios,
    run_openavs,
    time_alternately,
    use_one_thread,
    working_folder,
)

use_one_thread()

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    import torch  # imported by the functions that need it: the peak of `--full` must not include it

CLASSES = 71
SIDE = 224
SEMANTIC = {"v1s": (740, 5, (224, 224)), "v1m": (64, 5, (224, 224)), "v2": (750, 10, (640, 360))}  # clips, frames, size
TRACKS = (205, 61, 10)  # clips, frames, predicted tracks
REFERRING = {"test_s": (494, 2288), "test_u": (337, 1656), "test_n": (257, 1028)}  # objects, expressions
REFERRING_FRAMES = 10
POOL = 40  # different masks of a full-size set, which repeats them


def main() -> int:
    """Measure and print; 1 if an output differs from its reference."""
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--frames", type=int, default=20, help="frames of 224 x 224 per repeat")
    parser.add_argument("--full", action="store_true", help="also score full-size test sets of PNG files")
    parser.add_argument("--tracks", action="store_true", help="only score a full-size set of tracks")
    parser.add_argument("--expressions", action="store_true", help="only score a full-size set of expressions")
    parser.add_argument("--size", default="1280x720", metavar="WxH", help="of the masks of --expressions")
    options = parser.parse_args()
    if options.tracks or options.expressions:
        size = tuple(int(edge) for edge in options.size.split("x"))
        print_figures(full_size_tracks() if options.tracks else full_size_expressions(size), options.json)
        return 0
    figures: dict[str, Any] = {"frames": options.frames, "repeats": options.repeats, "threads": 1}
    if options.full:  # first: a child process starts with the peak memory of this one
        figures |= full_size()
    for measure in (measure_f, measure_avss, measure_palette):
        figures |= measure(options.frames, options.repeats)
    print_figures(figures, options.json)
    return 0 if all(figures[name] for name in ("f_identical", "avss_identical", "palette_identical")) else 1


# ------------------------------------------------------------------------------------------------------------ ratios


def measure_f(frames: int, repeats: int) -> dict[str, Any]:
    """Compare the F curves of single frames."""
    import torch

    from openavs.evaluation.metrics.functional import frame_f_curve

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    truths = [np.asarray(ellipse(rng) > 0) for _ in range(frames)]
    soft = [np.clip(0.7 * y + 0.4 * rng.random(y.shape) - 0.05, 0, 1).astype(np.float32) for y in truths]
    tensors = [(torch.from_numpy(p), torch.from_numpy(y).float()) for p, y in zip(soft, truths, strict=True)]
    return compare(
        "f",
        repeats,
        ours=lambda: [frame_f_curve(p, y) for p, y in zip(soft, truths, strict=True)],
        reference=lambda: [reference_f_curve(p, y) for p, y in tensors],
        same=lambda a, b: all(np.array_equal(x, y.numpy()) for x, y in zip(a, b, strict=True)),
    )


def measure_avss(frames: int, repeats: int) -> dict[str, Any]:
    """Compare the counts per class, and the IoU and F of them."""
    import torch

    from openavs.evaluation.metrics.functional import areas, clip_class_sums, confusion

    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    truths = [label_map(rng) for _ in range(frames)]
    predicted = [
        np.where(rng.random(y.shape) < 0.8, y, rng.integers(0, CLASSES, y.shape)).astype(np.uint8) for y in truths
    ]
    labels = [(torch.from_numpy(p).long(), torch.from_numpy(y)) for p, y in zip(predicted, truths, strict=True)]
    noise = torch.rand(CLASSES, SIDE, SIDE)
    bonus = torch.full((1, SIDE, SIDE), 4.0)
    scores = [noise.scatter_add(0, p[None], bonus) for p, _ in labels]  # the argmax is the predicted label map

    def ours() -> Any:
        return clip_class_sums(np.stack(predicted), np.stack(truths), CLASSES)

    def with_iou_and_f(found: torch.Tensor) -> torch.Tensor:
        reference_iou_and_f(found)  # its time counts
        return found

    def from_scores() -> list[torch.Tensor]:
        pairs = zip(scores, labels, strict=True)
        return [with_iou_and_f(reference_areas(s.softmax(dim=0).argmax(dim=0), y)) for s, (_, y) in pairs]

    def from_labels() -> list[torch.Tensor]:
        return [with_iou_and_f(reference_areas(p, y)) for p, y in labels]

    def same(a: Any, b: list[torch.Tensor]) -> bool:
        # The same pixels per class, and sums that differ at most by the order of addition.
        exact = [np.stack(areas(confusion(p, y, CLASSES))) for p, y in zip(predicted, truths, strict=True)]
        sums = torch.stack([reference_iou_and_f(frame) for frame in b]).sum(dim=0).numpy()
        equal = all(np.array_equal(x, y.numpy()) for x, y in zip(exact, b, strict=True))
        return equal and bool(np.abs(sums - [a.iou, a.f]).max() <= 1e-12 * frames)

    counting = compare("avss_counting", repeats, ours, from_labels, same)
    whole = compare("avss", repeats, ours, from_scores, same)
    return whole | {"avss_counting_ratio": counting["avss_counting_ratio"]}


def measure_palette(frames: int, repeats: int) -> dict[str, Any]:
    """Compare the decoding of color masks."""
    from openavs.evaluation.datasets.mask_io import decode_palette
    from openavs.structures.masks import voc_palette

    rng = np.random.default_rng(2)
    colors = voc_palette()[:CLASSES]
    images = [colors[label_map(rng)] for _ in range(frames)]
    decode_palette(images[0])  # builds a table once per process
    return compare(
        "palette",
        repeats,
        ours=lambda: [decode_palette(image) for image in images],
        reference=lambda: [reference_palette(image, colors) for image in images],
        same=lambda a, b: all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)),
    )


def compare(
    name: str,
    repeats: int,
    ours: Callable[[], Any],
    reference: Callable[[], Any],
    same: Callable[[Any, Any], bool],
) -> dict[str, Any]:
    """Measure both sides alternately and compare their outputs."""
    identical = same(ours(), reference())  # this warms up both, too
    seconds = time_alternately({"reference": reference, "ours": ours}, repeats)
    return {
        f"{name}_ratio": round(median(ratios(seconds["reference"], seconds["ours"])), 1),
        f"{name}_ratio_wall": round(median(ratios(seconds["reference"], seconds["ours"], "wall")), 1),
        f"{name}_ours_seconds": round(median(own.cpu for own in seconds["ours"]), 5),
        f"{name}_reference_seconds": round(median(own.cpu for own in seconds["reference"]), 5),
        f"{name}_identical": identical,
    }


# --------------------------------------------------------------------------------------------------------- reference
# The metrics of AVSBench as they are usually written, following the published evaluation step by step. They are only
# a reference for speed and results; openavs does not score with them.


def reference_f_curve(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return F (beta squared 0.3) of one frame at 255 thresholds; both inputs float32 `[H, W]`, the truth 0 and 1."""
    import torch

    precision, recall = torch.zeros(255), torch.zeros(255)
    for k, threshold in enumerate(torch.linspace(0, 1 - 1e-10, 255)):
        selected = (probability >= threshold).float()
        hit = (selected * truth).sum()
        precision[k] = hit / (selected.sum() + 1e-20)
        recall[k] = hit / (truth.sum() + 1e-20)
    return torch.nan_to_num((1 + 0.3) * precision * recall / (0.3 * precision + recall), nan=0.0)


def reference_areas(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the correct, predicted and true pixels per class, `[3, 71]`, of label maps `[H, W]`, by histograms."""
    import torch

    predicted, true = predicted.float() + 1, truth.float() + 1
    hit = predicted * (predicted == true)  # 0 where they differ, which is in no bin
    return torch.stack([torch.histc(values, bins=CLASSES, min=1, max=CLASSES) for values in (hit, predicted, true)])


def reference_iou_and_f(areas: torch.Tensor) -> torch.Tensor:
    """Return IoU and F of a frame per class, `[2, 71]`, 0 where undefined."""
    import torch

    hit, predicted, true = areas.double()
    iou = hit / (predicted + true - hit + 2.2e-16)
    precision, recall = hit / predicted, hit / true
    f = 1.3 * precision * recall / (0.3 * precision + recall)
    return torch.stack([iou, torch.nan_to_num(f, nan=0.0)])


def reference_palette(image: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Return class indices `[H, W]` of colors `[H, W, 3]`, by one comparison of the whole image per color."""
    is_class = [np.all(np.equal(image, color), axis=-1) for color in palette]
    return np.asarray(np.argmax(np.stack(is_class, axis=-1).astype(np.float32), axis=-1))


# --------------------------------------------------------------------------------------------------- full-size sets


def full_size() -> dict[str, Any]:
    """Return seconds and memory of `openavs score` on sets of the size of the test splits.

    Raises:
        SystemExit: the command does not score all frames.
    """
    figures: dict[str, Any] = {}
    peaks = []
    with working_folder() as root:
        write_s4(root / "s4")
        write_avss(root / "avss")
        for name, frames in (("s4", 3700), ("avss", 11520)):
            words = ("score", name, "--root", root / name, "--predictions", root / f"{name}-masks", "--json")
            usage = run_openavs(*words)
            scored = json.loads(usage.output)["frames"]
            if scored != frames:
                raise SystemExit(f"{name}: {scored} frames were scored, not {frames}")
            figures |= {f"{name}_seconds": round(usage.wall, 2), f"{name}_cpu_seconds": round(usage.cpu, 2)}
            figures[f"{name}_frames"] = frames
            peaks.append(usage.peak_mb)
    return figures | {"peak_mb": round(max(peaks), 1)}


def full_size_tracks() -> dict[str, Any]:
    """Return seconds and memory of `openavs score avis` on a set of the size of AVISeg's test split."""
    with working_folder() as root:
        masks, letters = write_avis(root)
        words = ("score", "avis", "--root", root, "--predictions", root / "results.json", "--json")
        usage = run_openavs(*words)
        answer = json.loads(usage.output)
    clips, frames, _ = TRACKS
    if (answer["clips"], answer["frames"]) != (clips, clips * frames):
        raise SystemExit(f"{answer['clips']} clips of {answer['frames']} frames were scored")
    return {
        "tracks_seconds": round(usage.wall, 2),
        "tracks_cpu_seconds": round(usage.cpu, 2),
        "tracks_peak_mb": round(usage.peak_mb, 1),
        "predicted_masks": masks,
        "letters_per_mask": round(letters / masks),
        "hota": answer["figures"]["fixed"]["hota"],
    }


def full_size_expressions(size: tuple[int, ...]) -> dict[str, Any]:
    """Return seconds and memory of `openavs score ref-avs` on a set of the size of Ref-AVS's test splits.

    Raises:
        SystemExit: the command does not score all expressions.
    """
    expressions = sum(count for _, count in REFERRING.values())
    with working_folder() as root:
        write_ref_avs(root, size)
        words = ("score", "ref-avs", "--root", root, "--predictions", root / "masks", "--json")
        usage = run_openavs(*words)
        answer = json.loads(usage.output)
    if (answer["clips"], answer["frames"]) != (expressions, expressions * REFERRING_FRAMES):
        raise SystemExit(f"{answer['clips']} expressions of {answer['frames']} frames were scored")
    return {
        "expressions": expressions,
        "size": list(size),
        "expressions_seconds": round(usage.wall, 2),
        "expressions_cpu_seconds": round(usage.cpu, 2),
        "expressions_peak_mb": round(usage.peak_mb, 1),
        "metrics": answer["metrics"],
    }


def write_ref_avs(root: Path, size: tuple[int, ...]) -> None:
    """Write `metadata.csv`, `gt_mask/`, the folders of `media/` and `masks/`; `size` is (width, height)."""
    rng = np.random.default_rng(6)
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pairs = []
    for _ in range(POOL):
        (cx, cy), (rx, ry) = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0.1, 0.35, 2) * size
        distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
        ragged = distance < 1 + 0.1 * rng.standard_normal(width)
        soft = 255 / (1 + np.exp(20 * np.clip(distance - rng.uniform(0.8, 1.2), -1, 1)))
        pairs.append((png(np.where(ragged, np.uint8(255), np.uint8(0))), png(soft.astype(np.uint8))))
    nothing = png(np.zeros((height, width), np.uint8))
    rows, number = ["vid,uid,split,fid,exp"], 0
    for split, (objects, expressions) in REFERRING.items():
        for n in range(objects):
            folder = f"{split}{n:04d}_0_10000"
            for k in range(REFERRING_FRAMES):
                truth = nothing if split == "test_n" else pairs[(7 * n + k) % POOL][0]
                write(root / "gt_mask" / folder / "fid_0" / f"{k:05d}.png", truth)
            for m in range(expressions // objects + (n < expressions % objects)):
                uid = f"{folder}_dog_{m + 1}"
                rows.append(f"{folder},{uid},{split},0,The dog {m} on the left.")
                for k in range(REFERRING_FRAMES):
                    write(root / "masks" / uid / f"{k}.png", pairs[(7 * n + k + number % 3) % POOL][1])
                number += 1
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


def write_avis(root: Path) -> tuple[int, int]:
    """Write `test.json` and `results.json`; return the number of predicted masks and of letters in their codes."""
    from openavs.structures.masks import mask_to_rle

    rng = np.random.default_rng(5)
    clips, frames, count = TRACKS
    shapes = []
    for _ in range(POOL):
        (cx, cy), (rx, ry) = rng.uniform(0.2, 0.8, 2) * (1280, 720), rng.uniform(60, 250, 2)
        angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
        ring = np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1).clip(0, (1279, 719))
        y, x = np.mgrid[:720, :1280]
        ragged = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1 + 0.1 * rng.standard_normal(1280)
        shapes.append((ring.round(1).ravel().tolist(), mask_to_rle(ragged)))
    videos: list[Any] = []
    annotations: list[Any] = []
    predictions: list[Any] = []
    for n in range(1, clips + 1):
        files = [f"v{n:03d}/{k}.jpg" for k in range(frames)]
        videos.append({"id": n, "width": 1280, "height": 720, "length": frames, "file_names": files})
        for track in range(count):
            category, shape = 1 + (n + track) % 26, (3 * n + 7 * track) % POOL
            on = rng.random(frames) < 0.6
            if track < 2 + n % 2:
                own: dict[str, Any] = {"id": len(annotations) + 1, "video_id": n, "category_id": category, "iscrowd": 0}
                own |= {"segmentations": [[shapes[shape][0]] if sounds else None for sounds in on]}
                annotations.append(own | {"areas": [50_000 if sounds else None for sounds in on]})
            codes = [shapes[shape if sounds else (shape + 1) % POOL][1] for sounds in on]
            masks = [{"size": list(code.size), "counts": code.counts} for code in codes]
            predictions.append(
                {"video_id": n, "score": float(rng.random()), "category_id": category, "segmentations": masks}
            )
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 27)]
    write(
        root / "test.json",
        json.dumps({"videos": videos, "annotations": annotations, "categories": categories}).encode(),
    )
    write(root / "results.json", json.dumps(predictions).encode())
    letters = sum(len(code["counts"]) for track in predictions for code in track["segmentations"])
    return clips * frames * count, letters


def write_s4(root: Path) -> None:
    """Write 740 clips of 5 masks, 224 x 224, with soft predictions beside."""
    rng = np.random.default_rng(3)
    masks = [ellipse(rng) for _ in range(POOL)]
    soft = [np.clip(0.7 * m + 60 * rng.random(m.shape), 0, 255).astype(np.uint8) for m in masks]
    pairs = [(png(mask), png(prediction)) for mask, prediction in zip(masks, soft, strict=True)]
    rows = [f"v{n},0,dog_barking,test" for n in range(740)]
    root.mkdir()
    (root / "s4_meta_data.csv").write_text("\n".join(["name,start,category,split", *rows]) + "\n")
    for n in range(740):
        place = Path("test/dog_barking") / f"v{n}"
        for k in range(1, 6):
            truth, prediction = pairs[(n * 5 + k) % POOL]
            write(root / "s4_data/gt_masks" / place / f"v{n}_{k}.png", truth)
            write(root.parent / "s4-masks" / place / f"v{n}_{k}.png", prediction)


def write_avss(root: Path) -> None:
    """Write 1,554 clips: 5 label maps of 224 x 224 for v1s and v1m, 10 of 640 x 360 for v2."""
    rng = np.random.default_rng(4)
    rows = ["vid,uid,s_min,s_sec,a_obj,split,label"]
    for subset, (clips, frames, size) in SEMANTIC.items():
        masks = [label_map(rng, size) for _ in range(POOL)]
        pairs = [(png(mask), png(np.roll(mask, 9, axis=1))) for mask in masks]
        for n in range(clips):
            rows.append(f"{n},{subset}-{n},0,0,dog,test,{subset}")
            place = f"{subset}/{subset}-{n}/labels_semantic"
            for k in range(frames):
                truth, prediction = pairs[(n * frames + k) % POOL]
                write(root / place / f"{k}.png", truth)
                write(root.parent / "avss-masks" / place / f"{k}.png", prediction)
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


def ellipse(rng: np.random.Generator, size: tuple[int, int] = (SIDE, SIDE)) -> npt.NDArray[np.uint8]:
    """Return a random ellipse, uint8 0 and 255, `[height, width]`; `size` is (width, height)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    cx, cy = rng.uniform(0.2, 0.8, 2) * (width, height)
    rx, ry = rng.uniform(0.1, 0.35, 2) * (width, height)
    inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    return np.where(inside, np.uint8(255), np.uint8(0))


def label_map(rng: np.random.Generator, size: tuple[int, int] = (SIDE, SIDE)) -> npt.NDArray[np.uint8]:
    """Return three ellipses of random classes on the background, class indices uint8 `[height, width]`."""
    labels = np.zeros((size[1], size[0]), np.uint8)
    for index in rng.integers(1, CLASSES, 3):
        labels[ellipse(rng, size) > 0] = index
    return labels


def png(mask: npt.NDArray[np.uint8]) -> bytes:
    """Encode a mask as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Write a file and its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    raise SystemExit(main())
