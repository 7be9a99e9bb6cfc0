"""The working folder of the page examples."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from openavs.config.recipe import load_recipe
from openavs.media.audio import write_wav
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the inputs of the examples: a video, images and audio, a folder of videos, clip folders, a recipe."""
    folder = tmp_path_factory.mktemp("inputs")
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (160, 208))
    write_clip(folder / "video.mp4", scene, fps=8)
    write_wav(folder / "sound.wav", scene.soundtrack())
    picture, owners = scene.picture(0.5)
    clip = folder / "my-data" / "test" / "one"
    for place in (folder / "pictures", folder / "videos", clip / "frames", clip / "masks"):
        place.mkdir(parents=True)
    shutil.copy(folder / "video.mp4", folder / "videos")
    shutil.copy(folder / "sound.wav", clip)
    Image.fromarray(picture).save(folder / "pictures" / "0.png")
    Image.fromarray(picture).save(clip / "frames" / "0.png")
    Image.fromarray(np.where(owners == 1, 255, 0).astype(np.uint8)).save(clip / "masks" / "0.png")
    (folder / "mine.yaml").write_text(yaml.safe_dump(load_recipe("tiny").to_dict()), encoding="utf-8")
    return folder


def copied(inputs: Path, to: Path) -> Path:
    """Copy the inputs, because pages write beside them."""
    shutil.copytree(inputs, to, dirs_exist_ok=True)
    return to
