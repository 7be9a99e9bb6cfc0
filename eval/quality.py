"""How good the `tiny` recipe is on held-out scenes of the synthetic world, layout by layout.

    python eval/quality.py --clips 100 --json

Writes S4-, MS3- and AVSS-layout test sets to a temporary folder, runs the recipe over their frames and sounds as they
lie on disk, and scores it with the package's metrics. Prints, per layout: J and F (official protocol, batches of one
clip), or the foreground mIoU (fixed protocol); the share of silent frames that are empty; and the share of clips with
a silent thing in the picture in which one was segmented (more than a quarter of its visible pixels marked).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pil

from openavs.config.recipe import load_recipe
from openavs.evaluation.datasets.classes import CLASSES
from openavs.evaluation.metrics.metrics import BinaryMetrics, SemanticMetrics
from openavs.evaluation.metrics.silence import SilenceMetrics
from openavs.media import open_clip
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.types import ClipResult, segments_to_label_map, segments_to_mask
from openavs.synthetic.datasets import FRAME_TIME, SEMANTIC_SIZE, semantic_layout, write_layout
from openavs.synthetic.scene_sampling import SceneSpec, sample_scene


@dataclass
class Distractors:
    """Clips with a silent thing in the picture, and those in which one was segmented."""

    clips: int = 0
    caught: int = 0

    def update(self, cast: SceneSpec, masks: np.ndarray) -> None:
        if cast.distractors:
            self.clips += 1
            self.caught += any(self._marked(cast, kind, masks) for kind in cast.distractors)

    @staticmethod
    def _marked(cast: SceneSpec, kind: str, masks: np.ndarray) -> bool:
        number = next(i for i, actor in enumerate(cast.scene.actors, start=1) if actor.kind == kind)
        for second, mask in enumerate(masks):
            seen = cast.scene.picture(second + FRAME_TIME)[1] == number
            if seen.any() and (mask & seen).sum() > 0.25 * seen.sum():
                return True
        return False


@dataclass
class Tally:
    """What one layout's run adds up to."""

    silence: SilenceMetrics = field(default_factory=SilenceMetrics)
    distractors: Distractors = field(default_factory=Distractors)
    seconds: float = 0.0

    def figures(self) -> dict[str, float | None]:
        caught, clips = self.distractors.caught, self.distractors.clips
        share = caught / clips if clips else None
        return {**self.silence.compute(), "distractor_clips": share, "seconds": round(self.seconds, 1)}


def casts(layout: str, count: int, seed: int) -> Iterator[SceneSpec]:
    """The scenes behind a written test set, in the order of its csv."""
    for index in range(count):
        if layout == "avss":
            yield sample_scene(semantic_layout(index)[1], "test", seed + 500, index, size=SEMANTIC_SIZE)
        else:
            yield sample_scene(layout, "test", seed, index)


def clip_folders(layout: str, root: Path) -> list[tuple[Path, Path, Path]]:
    """Frames, sound and masks of every clip, in the order of the csv."""
    if layout == "avss":
        rows = [line.split(",") for line in (root / "metadata.csv").read_text().splitlines()[1:]]
        homes = [root / row[6] / row[1] for row in rows]
        return [(home / "frames", home / "audio.wav", home / "labels_semantic") for home in homes]
    data = root / f"{layout}_data"
    rows = [line.split(",") for line in (root / f"{layout}_meta_data.csv").read_text().splitlines()[1:]]
    if layout == "s4":
        paths = [(row[3] + "/" + row[2] + "/" + row[0],) * 2 for row in rows]
    else:
        paths = [(row[0], row[1] + "/" + row[0]) for row in rows]
    return [
        (data / "visual_frames" / frames, data / "audio_wav" / f"{rest}.wav", data / "gt_masks" / rest)
        for frames, rest in paths
    ]


def read_masks(folder: Path) -> np.ndarray:
    """The masks or label maps of a clip, `[T, H, W]`."""
    paths = sorted(folder.iterdir(), key=lambda path: int(path.stem.rsplit("_", 1)[-1]))
    return np.stack([np.asarray(Pil.open(path)) for path in paths])


def label_maps(result: ClipResult) -> np.ndarray:
    """Class indices `[T, H, W]`."""
    index = {name: i for i, name in enumerate(CLASSES)}
    maps = [
        segments_to_label_map(frame.segments, [index[s.label or "background"] for s in frame.segments], result.size)
        for frame in result.frames
    ]
    return np.stack(maps)


def run(layout: str, count: int, seed: int, overrides: list[str]) -> dict[str, float | None]:
    """Writes, segments and scores one layout."""
    closed = [f"vocabulary={json.dumps(list(CLASSES[1:]))}"] if layout == "avss" else []
    pipe = Pipeline.from_recipe(load_recipe("tiny", [*overrides, *closed]))
    binary, semantic, tally = BinaryMetrics(), SemanticMetrics(), Tally()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_layout(layout, root, {"test": count}, seed)
        for (frames, sound, masks), cast in zip(clip_folders(layout, root), casts(layout, count, seed), strict=True):
            truth = read_masks(masks)
            started = time.monotonic()
            result = pipe(open_clip(frames, fps=1.0, audio=sound))
            tally.seconds += time.monotonic() - started
            union = np.stack([segments_to_mask(frame.segments, result.size) for frame in result.frames])
            silent = np.array([not cast.scene.sounding(second) for second in range(cast.scene.seconds)])
            tally.silence.update(union, silent)
            tally.distractors.update(cast, union)
            if layout == "avss":
                semantic.update(label_maps(result), truth)
            else:
                binary.update(union, truth > 0)
    scores = semantic.compute("fixed") if layout == "avss" else binary.compute("official")
    return {**scores, **tally.figures()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100, help="test clips per layout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layouts", nargs="+", default=["s4", "ms3", "avss"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answer = {layout: run(layout, options.clips, options.seed, options.set) for layout in options.layouts}
    if options.json:
        print(json.dumps(answer, indent=2))
        return
    for layout, figures in answer.items():
        print(layout, {name: None if value is None else round(value, 4) for name, value in figures.items()})


if __name__ == "__main__":
    main()
