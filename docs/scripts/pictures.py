"""Writes the images of the docs from a run of `tiny`: `python docs/scripts/pictures.py [--seed N]`.

    docs/demo.png                a strip of frames with overlays, shown in the README
    docs/pictures/found.png      a frame, its overlay, its mask file
    docs/pictures/timeline.png   the timeline of the run's report
    docs/pictures/report.png     the report's first screen

The last two are screenshots of a headless Chromium; `--no-report` keeps the committed ones.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from openavs.cli import main as openavs
from openavs.config.recipe import load_recipe
from openavs.media.clip import open_clip
from openavs.pipeline.pipeline import Pipeline
from openavs.results.serialization import read_result
from openavs.structures.types import ImageArray
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import sample_scene
from openavs.visualization.colors import palette_of
from openavs.visualization.overlay import paint_frame

DOCS = Path(__file__).parents[1]
TIMELINE = "header,main>:not([aria-labelledby=h-time]),.player{display:none!important}main>section{margin:0!important}"


def demo_strip(seed: int) -> None:
    """Write the image of the README: five frames of a scene with masks and captions."""
    scene = sample_scene("clip", "test", seed, 0, size=(288, 320), seconds=5).scene
    clip = scene_to_clip(scene, "demo")
    result = Pipeline.from_recipe(load_recipe("tiny"))(clip)
    palette = palette_of(result.frames)
    save([paint_frame(f.image, result.frames[f.index], palette) for f in clip.frames(None)], DOCS / "demo.png")


def frame_and_mask(run: Path, frame: int) -> None:
    """Write one frame of the demo, its overlay and its mask file side by side."""
    result = read_result(run, "demo")
    (shown,) = open_clip(run / "scene.mp4").frames(frozenset({frame}))
    painted = paint_frame(shown.image, result.frames[frame], palette_of(result.frames))
    mask = Image.open(run / "clips" / "demo" / "masks" / f"{frame:05d}.png").convert("RGB")
    save([shown.image, painted, np.asarray(mask)], DOCS / "pictures" / "found.png")


def save(images: list[ImageArray], path: Path) -> None:
    """Write images of one size side by side, as a palette PNG."""
    gap = np.full((images[0].shape[0], 8, 3), 255, dtype=np.uint8)
    strip = np.hstack([part for image in images for part in (image, gap)][:-1])
    Image.fromarray(strip).quantize(256).save(path, optimize=True)


def screenshot(page: Path, to: Path, size: tuple[int, int], style: str = "") -> None:
    """Write a screenshot of a report in a light color scheme; `style` is appended to the CSS of the page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("Chromium is not installed; install it, or use --no-report")
    with tempfile.TemporaryDirectory() as folder:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
        # The player shows its images, at the third frame: a headless browser takes the screenshot before a video plays.
        text = re.sub(r"<video.*?</video>", "", text, flags=re.DOTALL).replace('"end":', '"begin":2.5,"end":', 1)
        copy, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        copy.write_text(text.replace("</style>", f"{style}</style>", 1), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
        window = f"--window-size={size[0]},{size[1]}"
        subprocess.run(
            [browser, *flags, window, f"--screenshot={shot}", copy.as_uri()], check=True, capture_output=True
        )
        Image.open(shot).convert("RGB").quantize(256).save(to, optimize=True)


def main() -> None:
    """Run the demo and write the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--no-report", action="store_true", help="skip the screenshots, which need a browser")
    options = parser.parse_args()
    (DOCS / "pictures").mkdir(exist_ok=True)
    demo_strip(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        if openavs(["demo", "--quiet", "--seed", str(options.seed), "--out", folder]) != 0:
            raise SystemExit("openavs demo failed; run it alone to see the error")
        frame_and_mask(run, frame=2)
        if not options.no_report:
            report = run / "clips" / "demo" / "report.html"
            screenshot(report, DOCS / "pictures" / "report.png", (900, 1165), ".player{--tall:42vh}")
            screenshot(report, DOCS / "pictures" / "timeline.png", (820, 495), TIMELINE)


if __name__ == "__main__":
    main()
