"""`openavs synth`: synthetic datasets in the layouts of AVSBench, or one synthetic clip."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from openavs.cli.options import JsonOption, QuietOption
from openavs.cli.output import echo, print_result
from openavs.errors import InputError


class LayoutName(StrEnum):
    """Layouts of a dataset, and a single clip."""

    s4 = "s4"
    ms3 = "ms3"
    avss = "avss"
    ov = "ov"
    clip = "clip"


def synth(
    layout: Annotated[LayoutName, typer.Argument(help="Layout of the dataset; clip writes one video with sound.")],
    out: Annotated[Path, typer.Option(help="New folder; for clip, the video file.")],
    clips: Annotated[int, typer.Option(min=0, help="Number of clips of the test split.")] = 10,
    train: Annotated[int, typer.Option(min=0, help="Number of clips of the training split.")] = 0,
    val: Annotated[int, typer.Option(min=0, help="Number of clips of the validation split.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=999, help="Different seeds have no scene in common.")] = 0,
    videos: Annotated[bool, typer.Option(help="Also write the raw videos of s4 and ms3.")] = False,
    seconds: Annotated[int, typer.Option(min=2, help="clip: length in seconds.")] = 5,
    size: Annotated[str, typer.Option(help="clip: WIDTHxHEIGHT in pixels.")] = "384x288",
    fps: Annotated[float, typer.Option(min=1, max=120, help="clip: frames per second.")] = 25.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="clip: replace an existing file.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write synthetic clips with exact masks, changing sounds and silent distractors."""
    from openavs.synthetic.datasets import write_clip, write_layout
    from openavs.synthetic.scenes import sample_scene

    if layout is LayoutName.clip:
        _check_video_path(out, overwrite)
        scene = sample_scene("clip", "test", seed, 0, size=_size(size), seconds=seconds).scene
        _make_folder(out.parent)
        write_clip(out, scene, fps)
        answer = {"out": str(out), "seconds": seconds, "sounding": [scene.sounding(s) for s in range(seconds)]}
        message = f"wrote {out}: {seconds} s"
    else:
        _make_folder(out)
        written = write_layout(layout.value, out, {"train": train, "val": val, "test": clips}, seed, videos)
        answer = {"out": str(out), "layout": layout.value, "clips": written}
        message = f"wrote {out}: " + ", ".join(f"{count} {split}" for split, count in written.items())
    print_result(answer, partial(echo, message), as_json=as_json, quiet=quiet)


def _check_video_path(video: Path, overwrite: bool) -> None:

    if video.is_dir():
        raise InputError(f"{video} is a folder; give --out the name of a video, such as {video / 'clip.mp4'}")
    if video.exists() and not overwrite:
        raise InputError(f"{video} exists; give another --out, or --overwrite to replace it")


def _make_folder(folder: Path) -> None:

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder} ({error.strerror}); give another --out") from error


def _size(text: str) -> tuple[int, int]:
    """Parses `WIDTHxHEIGHT`; returns (height, width)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and 16 <= int(width) <= 8192 and 16 <= int(height) <= 8192):
        raise InputError(f"--size {text!r} is not WIDTHxHEIGHT with sides from 16 to 8192, such as 384x288")
    return int(height), int(width)
