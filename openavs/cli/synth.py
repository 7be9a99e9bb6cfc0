"""`openavs synth`: the synthetic world as a data set in AVSBench's layouts, or as one clip."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from openavs.cli.options import JsonOption, QuietOption
from openavs.cli.output import echo, print_result


class LayoutName(StrEnum):
    """What can be written."""

    s4 = "s4"
    ms3 = "ms3"
    avss = "avss"
    ov = "ov"
    clip = "clip"


def synth(
    layout: Annotated[
        LayoutName, typer.Argument(help="A data set of AVSBench's layout, or clip: one video with sound.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder; for clip, the video file to write.")],
    clips: Annotated[int, typer.Option(min=0, help="Clips of the test split.")] = 10,
    train: Annotated[int, typer.Option(min=0, help="Clips of the training split.")] = 0,
    val: Annotated[int, typer.Option(min=0, help="Clips of the validation split.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=999, help="Data sets of different seeds share no scene.")] = 0,
    videos: Annotated[bool, typer.Option(help="Write the raw videos of s4 and ms3 too.")] = False,
    seconds: Annotated[int, typer.Option(min=2, help="clip: its length.")] = 5,
    size: Annotated[str, typer.Option(help="clip: WIDTHxHEIGHT.")] = "384x288",
    fps: Annotated[float, typer.Option(min=1, max=120, help="clip: frames a second.")] = 25.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="clip: replace an earlier file.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the synthetic world: exact masks, sounds that start and stop, silent things beside them."""
    from openavs.synthetic.datasets import write_clip, write_layout
    from openavs.synthetic.scene_sampling import sample_scene

    if layout is LayoutName.clip:
        _refuse(out, overwrite)
        scene = sample_scene("clip", "test", seed, 0, size=_size(size), seconds=seconds).scene
        _make(out.parent)
        write_clip(out, scene, fps)
        answer = {"out": str(out), "seconds": seconds, "sounding": [scene.sounding(s) for s in range(seconds)]}
        told = f"wrote {out}: {seconds} s"
    else:
        _make(out)
        written = write_layout(layout.value, out, {"train": train, "val": val, "test": clips}, seed, videos)
        answer = {"out": str(out), "layout": layout.value, "clips": written}
        told = f"wrote {out}: " + ", ".join(f"{count} {split}" for split, count in written.items())
    print_result(answer, partial(echo, told), as_json=as_json, quiet=quiet)


def _refuse(video: Path, overwrite: bool) -> None:
    from openavs.errors import InputError

    if video.is_dir():
        raise InputError(f"{video} is a folder; give --out the name of a video, such as {video / 'clip.mp4'}")
    if video.exists() and not overwrite:
        raise InputError(f"{video} is there already; give another --out, or --overwrite to replace it")


def _make(folder: Path) -> None:
    from openavs.errors import InputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot make the folder {folder} ({problem.strerror}); give another --out") from problem


def _size(text: str) -> tuple[int, int]:
    """(height, width) of `WIDTHxHEIGHT`."""
    from openavs.errors import InputError

    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and 16 <= int(width) <= 8192 and 16 <= int(height) <= 8192):
        raise InputError(f"--size {text!r} is not WIDTHxHEIGHT with sides from 16 to 8192, such as 384x288")
    return int(height), int(width)
