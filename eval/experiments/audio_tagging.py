"""Scores the prompts that an audio tagger and the lexicon derive from real sounds, and the phrases of each frame.

    python eval/experiments/audio_tagging.py --audio DIR --clips DIR --models DIR --json

Runs the captioner and the translator of `examples/edge/edge.yaml` with the tagger `mn04_as_mAP_432.pt` of `--models` on

- the files `esc10_<Class>_*.ogg` of `--audio` (ESC-10 without Rain, which has no visible source), one window per
  second: `audio.seconds` is the number of audible windows, `audio.named` the number of those with the object of the
  class among the prompts, `audio.other` the mean number of other prompts;
- the videos `*.mp4` of `--clips`. For the three with one known source: `clips.frames` audible frames, and
  `clips.named` of them with the source among the prompts. For all: `clips.grounded` frames with prompts, and
  `clips.boxes_lost` of them with phrases of other frames only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from openavs.config.recipe import Recipe, load_recipe, pipeline_config
from openavs.errors import InputError
from openavs.media.audio import read_audio
from openavs.media.clip import open_clip, planned_times
from openavs.pipeline.context import RunContext
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import Registry
from openavs.structures.types import Clip, Detection, ImageArray, Mask, Prompt

EDGE = Path(__file__).parents[2] / "examples" / "edge" / "edge.yaml"
TAGGER = "mn04_as_mAP_432.pt"
SOUNDS = {  # ESC-10 class -> names of its object
    "Baby_cry": {"baby"},
    "Chainsaw": {"chainsaw", "saw"},
    "Clock_tick": {"clock"},
    "Dog_bark": {"dog"},
    "Fire_crackling": {"fire"},
    "Helicopter": {"helicopter"},
    "Person_sneeze": {"person"},
    "Rooster": {"rooster"},
    "Sea_waves": {"ocean"},
}
SOURCES = {  # part of the name of an AVSBench clip -> names of its source
    "dog_barking": {"dog"},
    "lawn_mowing": {"mower", "lawn mower"},
    "0BLiYNtFSjA": {"horse"},
}


class NoBoxes:
    """A detector that finds nothing and records the phrases of each frame."""

    def __init__(self) -> None:
        self.phrases: list[tuple[str, ...]] = []

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Record the phrases and return an empty list per image."""
        self.phrases += [tuple(own) for own in phrases]
        return [[] for _ in images]


class NoMasks:
    """A segmenter that receives no boxes."""

    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Any]]) -> list[list[Mask]]:
        """Return an empty list per image."""
        assert not any(boxes)
        return [[] for _ in images]


def main() -> None:
    """Run both measurements and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="folder of esc10_<Class>_*.ogg")
    parser.add_argument("--clips", type=Path, required=True, help="folder of AVSBench videos")
    parser.add_argument("--models", type=Path, required=True, help=f"folder with {TAGGER}")
    parser.add_argument("--pipeline", default=str(EDGE), help="a recipe whose captioner is examples/edge/tagger.py")
    parser.add_argument("--json", action="store_true", help="totals only, without the figures of each file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the recipe")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    model = f"captioner.model={(options.models / TAGGER).resolve()}"
    recipe = load_recipe(options.pipeline, [model, *options.overrides])
    audio, clips = audio_figures(recipe, options.audio), clip_figures(recipe, options.clips)
    if options.json:
        audio.pop("files")
        clips.pop("files")
    print(json.dumps({"audio": audio, "clips": clips}, indent=2))


def audio_pipeline(recipe: Recipe) -> tuple[Pipeline, NoBoxes]:
    """Build a pipeline with the captioner and translator of a recipe, and stages that find nothing after them."""
    sections = recipe.stages()
    captioner, translator = (
        Registry(stage).build(sections[stage].use, sections[stage].options, {}, recipe.base)
        for stage in ("captioner", "translator")
    )
    detector = NoBoxes()
    return Pipeline(captioner, translator, detector, NoMasks(), pipeline_config(recipe)), detector


def audio_figures(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return the figures of the audio files.

    Raises:
        InputError: the folder has no such file.
    """
    pipeline, _ = audio_pipeline(recipe)
    files = {}
    for path in sorted(folder.glob("esc10_*.ogg")):
        names = next((names for kind, names in SOUNDS.items() if f"_{kind}_" in path.name), None)
        if names is not None:
            files[path.name] = count_prompts(audible_prompts(pipeline, audio_clip(path)), names)
    if not files:
        raise InputError(f"{folder} has no files esc10_<Class>_*.ogg")
    seconds, named, other = (sum(own[key] for own in files.values()) for key in ("frames", "named", "other"))
    return {"seconds": seconds, "named": named, "other": round(other / seconds, 3), "files": files}


def clip_figures(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return the figures of the videos."""
    pipeline, detector = audio_pipeline(recipe)
    files: dict[str, dict[str, int]] = {}
    lost = grounded = frames = named = 0
    for path in sorted(folder.glob("*.mp4")):
        detector.phrases.clear()
        result = pipeline(open_clip(path, fps=recipe.sample.fps))
        prompts = [tuple(p.phrase for p in frame.prompts) for frame in result.frames if frame.prompts]
        own = zip(detector.phrases, prompts, strict=True)
        files[path.name] = {"lost": sum(not set(given) <= set(frame) for given, frame in own)}
        lost, grounded = lost + files[path.name]["lost"], grounded + len(prompts)
        names = next((names for part, names in SOURCES.items() if part in path.name), None)
        if names is not None:
            audible = [frame.prompts for frame in result.frames if not frame.silent]
            files[path.name] |= count_prompts(audible, names)
            frames, named = frames + files[path.name]["frames"], named + files[path.name]["named"]
    return {"frames": frames, "named": named, "boxes_lost": lost, "grounded": grounded, "files": files}


def audio_clip(path: Path) -> Clip:
    """Open an audio file as a clip without images, one window per second.

    Raises:
        InputError: the file has no audio track.
    """
    audio = read_audio(path)
    if audio is None:
        raise InputError(f"{path} has no audio track")

    def frames(wanted: frozenset[int] | None) -> Iterator[Any]:
        return iter(())

    return Clip(path.stem, planned_times(audio.duration, 1.0), 1.0, (1, 1), frames, audio)


def audible_prompts(pipeline: Pipeline, clip: Clip) -> list[tuple[Prompt, ...]]:
    """Return the prompts of each audible second."""
    context = RunContext()
    captions = pipeline.caption(clip, context)
    prompts = pipeline.translate(clip, captions, context)
    return [own for own, captions_of_frame in zip(prompts, captions, strict=True) if captions_of_frame is not None]


def count_prompts(frames: Sequence[Sequence[Prompt]], names: set[str]) -> dict[str, int]:
    """Count frames, those with one of the names among their prompts, and the other prompts."""
    phrases = [{prompt.phrase for prompt in own} for own in frames]
    return {
        "frames": len(phrases),
        "named": sum(bool(own & names) for own in phrases),
        "other": sum(len(own - names) for own in phrases),
    }


if __name__ == "__main__":
    main()
