"""Makes the pictures of the docs from a run of `tiny`: `python docs/pictures.py [--seed N]`.

    docs/demo.png                a strip of frames, painted: the README's picture
    docs/pictures/found.png      a frame, the same painted, its mask file
    docs/pictures/timeline.png   the part "When" of the run's report
    docs/pictures/report.png     the report's first screen

The last two are photographed by a Chromium that runs without a window; without one (--no-report) they stay as they are.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image as Pil

from openavs.cli import main as openavs
from openavs.config.recipe import load_recipe
from openavs.media import open_clip
from openavs.pipeline.pipeline import Pipeline
from openavs.results.serialization import read_result
from openavs.structures.types import ImageArray
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scene_sampling import sample_scene
from openavs.visualization.colors import palette_of
from openavs.visualization.overlay import paint_frame

DOCS = Path(__file__).parent
TIMELINE = "header,main>:not([aria-labelledby=h-time]){display:none!important}main>section{margin:0!important}"


def demo_strip(seed: int) -> None:
    """The README's picture: five frames of a scene, what was heard below each, what was found painted on it."""
    scene = sample_scene("clip", "test", seed, 0, size=(288, 320), seconds=5).scene
    clip = scene_to_clip(scene, "demo")
    result = Pipeline.from_recipe(load_recipe("tiny"))(clip)
    palette = palette_of(result.frames)
    save([paint_frame(f.image, result.frames[f.index], palette) for f in clip.frames(None)], DOCS / "demo.png")


def found(run: Path, frame: int) -> None:
    """One frame of the demo as it is, painted, and as its mask file."""
    result = read_result(run, "demo")
    (picture,) = open_clip(run / "scene.mp4").frames(frozenset({frame}))
    painted = paint_frame(picture.image, result.frames[frame], palette_of(result.frames))
    mask = Pil.open(run / "clips" / "demo" / "masks" / f"{frame:05d}.png").convert("RGB")
    save([picture.image, painted, np.asarray(mask)], DOCS / "pictures" / "found.png")


def save(pictures: list[ImageArray], path: Path) -> None:
    """Pictures of one size side by side, in few colours."""
    gap = np.full((pictures[0].shape[0], 8, 3), 255, dtype=np.uint8)
    strip = np.hstack([piece for picture in pictures for piece in (picture, gap)][:-1])
    Pil.fromarray(strip).quantize(256).save(path, optimize=True)


def photograph(page: Path, to: Path, size: tuple[int, int], style: str = "") -> None:
    """What a browser shows of a report, in a light colour scheme; `style` is added to the page's own."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("there is no Chromium here; install one, or say --no-report")
    with tempfile.TemporaryDirectory() as folder:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
        copy, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        copy.write_text(text.replace("</style>", f"{style}</style>", 1), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
        window = f"--window-size={size[0]},{size[1]}"
        subprocess.run(
            [browser, *flags, window, f"--screenshot={shot}", copy.as_uri()], check=True, capture_output=True
        )
        Pil.open(shot).convert("RGB").quantize(256).save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--no-report", action="store_true", help="leave out what needs a browser")
    options = parser.parse_args()
    (DOCS / "pictures").mkdir(exist_ok=True)
    demo_strip(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        if openavs(["demo", "--quiet", "--seed", str(options.seed), "--out", folder]) != 0:
            raise SystemExit("openavs demo failed; run it alone to see why")
        found(run, frame=2)
        if not options.no_report:
            report = run / "clips" / "demo" / "report.html"
            photograph(report, DOCS / "pictures" / "report.png", (900, 1165))
            photograph(report, DOCS / "pictures" / "timeline.png", (820, 495), TIMELINE)


if __name__ == "__main__":
    main()
