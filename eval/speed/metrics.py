"""How fast scoring is: against straightforward implementations (`reference.py`), and in full size from PNG files.

    python eval/speed/metrics.py --json
    python eval/speed/metrics.py --full --json

Everything runs on one thread, both sides in turns on the same frames, and both answers are compared in the same run:
the F curves bit for bit, the pixels per class exactly. A ratio is the median over the repeats. It is taken of CPU
seconds, which other work on the machine does not change; the `_wall` ratios and the seconds are printed beside it.

- `f_ratio`: F of one frame at 255 thresholds, float probabilities, against 255 passes over the pixels.
- `avss_ratio`: AVSS's IoU and F of one frame; ours takes the label map, the reference the 71 maps of scores that the
  published evaluation takes (softmax, arg-max, histograms). `avss_counting_ratio` gives the reference the label map.
- `palette_ratio`: colours to class indices, against 71 comparisons of the whole picture.

`--full` writes sets of the sizes of S4's and AVSS's test splits (3,700 and 11,520 masks) to a temporary folder, lets
`openavs score` score each in a process of its own, and prints the seconds and the larger peak of memory.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20, help="frames of 224 x 224 per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="also score full-size test sets from PNG files")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    answer: dict[str, Any] = {"frames": options.frames, "repeats": options.repeats, "threads": 1}
    if options.full:  # first: a process begins with the peak of memory of the one that started it
        from full_size import full_size

        answer |= full_size()
    answer |= ratios(options.frames, options.repeats)
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(f"{name}: {value}" for name, value in answer.items()))
    return 0 if all(answer[name] for name in ("f_identical", "avss_identical", "palette_identical")) else 1


# ------------------------------------------------------------------------------------------------------------ ratios


def ratios(frames: int, repeats: int) -> dict[str, Any]:
    """All ratios, and whether the answers agree."""
    import torch

    torch.set_num_threads(1)
    return measure_f(frames, repeats) | measure_avss(frames, repeats) | measure_palette(frames, repeats)


def measure_f(frames: int, repeats: int) -> dict[str, Any]:
    import numpy as np
    import torch
    from masks import blob
    from reference import f_curve

    from openavs.evaluation.metrics.functional import frame_f_curve

    rng = np.random.default_rng(0)
    truths = [np.asarray(blob(rng) > 0) for _ in range(frames)]
    soft = [np.clip(0.7 * y + 0.4 * rng.random(y.shape) - 0.05, 0, 1).astype(np.float32) for y in truths]
    tensors = [(torch.from_numpy(p), torch.from_numpy(y).float()) for p, y in zip(soft, truths, strict=True)]
    return compare(
        "f",
        repeats,
        ours=lambda: [frame_f_curve(p, y) for p, y in zip(soft, truths, strict=True)],
        reference=lambda: [f_curve(p, y) for p, y in tensors],
        same=lambda a, b: all(np.array_equal(x, y.numpy()) for x, y in zip(a, b, strict=True)),
    )


def measure_avss(frames: int, repeats: int) -> dict[str, Any]:
    import numpy as np
    import torch
    from masks import SIDE, label_map
    from reference import areas_of_labels, class_areas, iou_and_f

    from openavs.evaluation.metrics.functional import areas, clip_class_sums, confusion

    rng = np.random.default_rng(1)
    truths = [label_map(rng) for _ in range(frames)]
    predicted = [np.where(rng.random(y.shape) < 0.8, y, rng.integers(0, 71, y.shape)).astype(np.uint8) for y in truths]
    labels = [(torch.from_numpy(p).long(), torch.from_numpy(y)) for p, y in zip(predicted, truths, strict=True)]
    noise = torch.rand(71, SIDE, SIDE)
    bonus = torch.full((1, SIDE, SIDE), 4.0)
    scores = [noise.scatter_add(0, p[None], bonus) for p, _ in labels]  # the arg-max is the predicted label map

    def ours() -> Any:
        return clip_class_sums(np.stack(predicted), np.stack(truths), 71)

    def from_scores() -> list[torch.Tensor]:
        return [with_figures(class_areas(s, y)) for s, (_, y) in zip(scores, labels, strict=True)]

    def from_labels() -> list[torch.Tensor]:
        return [with_figures(areas_of_labels(p, y)) for p, y in labels]

    def with_figures(found: torch.Tensor) -> torch.Tensor:
        iou_and_f(found)  # its time counts
        return found

    def same(a: Any, b: list[torch.Tensor]) -> bool:
        """The same pixels per class, and sums that differ by the order of adding at most."""
        exact = [np.stack(areas(confusion(p, y, 71))) for p, y in zip(predicted, truths, strict=True)]
        sums = torch.stack([iou_and_f(frame) for frame in b]).sum(dim=0).numpy()
        equal = all(np.array_equal(x, y.numpy()) for x, y in zip(exact, b, strict=True))
        return equal and bool(np.abs(sums - [a.iou, a.f]).max() <= 1e-12 * frames)

    counting = compare("avss_counting", repeats, ours, from_labels, same)
    whole = compare("avss", repeats, ours, from_scores, same)
    return whole | {"avss_counting_ratio": counting["avss_counting_ratio"]}


def measure_palette(frames: int, repeats: int) -> dict[str, Any]:
    import numpy as np
    from masks import label_map
    from reference import decode_palette as one_by_one

    from openavs.evaluation.datasets.mask_io import decode_palette
    from openavs.visualization.colors import voc_palette

    rng = np.random.default_rng(2)
    colours = voc_palette()[:71]
    pictures = [colours[label_map(rng)] for _ in range(frames)]
    decode_palette(pictures[0])  # the table is made once per process
    return compare(
        "palette",
        repeats,
        ours=lambda: [decode_palette(picture) for picture in pictures],
        reference=lambda: [one_by_one(picture, colours) for picture in pictures],
        same=lambda a, b: all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)),
    )


def compare(
    name: str,
    repeats: int,
    ours: Callable[[], Any],
    reference: Callable[[], Any],
    same: Callable[[Any, Any], bool],
) -> dict[str, Any]:
    """Both sides in turns; seconds are CPU seconds, the medians of a repeat."""
    identical = same(ours(), reference())  # and both are warm
    fast: list[tuple[float, float]] = []
    slow: list[tuple[float, float]] = []
    for turn in range(repeats):
        for side, times in ((ours, fast), (reference, slow)) if turn % 2 else ((reference, slow), (ours, fast)):
            wall, cpu = time.perf_counter(), time.thread_time()
            side()
            times.append((time.thread_time() - cpu, time.perf_counter() - wall))
    by_cpu, by_wall = (median(b[i] / a[i] for a, b in zip(fast, slow, strict=True)) for i in (0, 1))
    return {
        f"{name}_ratio": round(by_cpu, 1),
        f"{name}_ratio_wall": round(by_wall, 1),
        f"{name}_ours_seconds": round(median(a for a, _ in fast), 5),
        f"{name}_reference_seconds": round(median(b for b, _ in slow), 5),
        f"{name}_identical": identical,
    }


if __name__ == "__main__":
    sys.exit(main())
