"""Training: exact resume, saved files, inference and errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from openavs.config.recipe import load_recipe
from openavs.errors import InputError, ModelError
from openavs.evaluation.benchmark import open_dataset
from openavs.pipeline.pipeline import Pipeline
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from openavs.training.audio_features import FeatureCache
from openavs.training.base import Student, load_student, student_class
from openavs.training.config import TrainingRecipe, load_training_recipe, training_recipe_names
from openavs.training.inference import StudentPipeline, predict_clip
from openavs.training.io import BUILT_IN
from openavs.training.models.backbones import load_vggish
from openavs.training.trainer import TrainingError, check_device, make_student, train
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Reset the state that accelerate keeps per process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def small(vggish: Path, *overrides: str) -> TrainingRecipe:
    model = "model={backbone: pvt_v2_tiny, side: 32, channels: 8, inner: 4, drop_path: 0.2, flip: true}"
    own = [model, "init={}", f"audio={vggish}", "batch=2", "max_steps=6", "save_every=3", "schedule.warmup=2"]
    return load_training_recipe("tpavi-tiny", [*own, *overrides])


def run(recipe: TrainingRecipe, root: Path, out: Path, **options: Any) -> Any:
    val = open_dataset("s4", root, "val") if options.pop("validate", True) else None
    return train(recipe, open_dataset("s4", root, "train"), val, out, device="cpu", **options)


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_resumed_training_has_the_same_losses(s4: Path, vggish: Path, tmp_path: Path) -> None:
    whole = run(small(vggish), s4, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "steps" and done == 5:  # two steps after the checkpoint of step 3
            raise Killed

    with pytest.raises(Killed):
        run(small(vggish), s4, tmp_path / "cut", progress=kill)
    assert len(losses(tmp_path / "cut")) == 5
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(77)  # other code may have used random numbers
    resumed = run(small(vggish), s4, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 6
    assert (resumed.steps, resumed.best, resumed.best_step) == (whole.steps, whole.best, whole.best_step)
    one, other = (load_student(str(tmp_path / name / "last")).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


EVERY_STUDENT = {
    "tpavi": "model={backbone: pvt_v2_tiny, side: 32, channels: 8, inner: 4, drop_path: 0.2, flip: true}",
    "avsegformer": "model={backbone: resnet_tiny, side: 32, channels: 32, heads: 2, encoder_layers: 1, "
    "decoder_layers: 1, query_layers: 1, queries: 4, ffn: 16, query_ffn: 16, mask_ffn: 16, flip: true}",
    "sama-avs": 'model={backbone: "openavs:tiny/sam", side: 128, adapter: 8, frames: 1, flip: true}',
    "ov-avss": "model={backbone: resnet_tiny, channels: 32, heads: 2, encoder_layers: 1, decoder_layers: 1, "
    'encoder_ffn: 16, decoder_ffn: 16, queries: 4, points: 64, frames: 1, sides: [32], clip: "openavs:tiny/clip"}',
}


@pytest.mark.slow
@pytest.mark.parametrize("student", sorted(BUILT_IN))
def test_a_training_that_is_killed_twenty_times_has_the_same_losses(
    student: str, s4: Path, vggish: Path, tmp_path: Path
) -> None:
    """The kills come after a step, with and without a checkpoint at it; the average of the weights resumes, too."""
    recipe = small(
        vggish, f"student={student}", EVERY_STUDENT[student], "epochs=99", "max_steps=41", "ema=0.9", "save_every=2"
    )
    run(recipe, s4, tmp_path / "whole")
    kills = 0

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "steps" and done == stop:
            raise KeyboardInterrupt

    for stop in sorted([*range(2, 42, 4), *range(3, 42, 4)]):
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(stop)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, s4, tmp_path / "cut", resume=True, progress=kill)
        kills += 1
    AcceleratorState._reset_state(reset_partial_state=True)
    run(recipe, s4, tmp_path / "cut", resume=True)
    assert kills == 20 and len(losses(tmp_path / "whole")) == 41
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for part in ("model.safetensors", "last/model.safetensors", "last/training/average.safetensors"):
        one, other = (load_file(tmp_path / name / part) for name in ("whole", "cut"))
        assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_average_of_the_weights_is_validated_and_saved(s4: Path, vggish: Path, tmp_path: Path) -> None:
    """Each step keeps at most `(1 + step) / (10 + step)` of the average, and then the decay."""
    weights: list[Any] = []

    def keep(stage: str, done: int, total: int) -> None:
        if stage == "steps" and done:
            weights.append(load_student(str(tmp_path / "last")).state_dict()["decoder.head.conv3.weight"])

    recipe = small(vggish, "ema=0.3", "max_steps=5", "save_every=1")
    start = make_student(recipe, open_dataset("s4", s4, "train")).state_dict()["decoder.head.conv3.weight"]
    run(recipe, s4, tmp_path, validate=False, progress=keep)
    expected = start
    for weight, decay in zip(weights, (1 / 10, 2 / 11, 3 / 12, 0.3, 0.3), strict=True):
        expected = decay * expected + (1 - decay) * weight
    saved = load_student(str(tmp_path)).state_dict()["decoder.head.conv3.weight"]
    assert torch.allclose(saved, expected, atol=1e-6) and not torch.equal(saved, weights[-1])
    assert torch.equal(
        load_file(tmp_path / "last" / "training" / "average.safetensors")["decoder.head.conv3.weight"], saved
    )


def test_training_killed_before_its_first_checkpoint_restarts(s4: Path, vggish: Path, tmp_path: Path) -> None:
    recipe = small(vggish, "max_steps=2")

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "steps" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, s4, tmp_path, validate=False, progress=kill)
    assert len(before := losses(tmp_path)) == 1 and not (tmp_path / "last").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert run(recipe, s4, tmp_path, validate=False, resume=True).steps == 2
    assert [step for step, _ in losses(tmp_path)] == [1, 2] and losses(tmp_path)[:1] == before


def test_frozen_part_starts_to_learn_after_its_epochs_also_when_resumed(s4: Path, vggish: Path, tmp_path: Path) -> None:
    recipe = small(vggish, "freeze={backbone: 2}", "save_every=2")  # 2 epochs of 2 steps

    def backbone(out: Path) -> Any:
        weights = load_student(str(out / "last")).state_dict()
        return torch.cat([t.flatten() for name, t in weights.items() if name.startswith("backbone")])

    run(small(vggish, "freeze={backbone: 2}", "max_steps=2"), s4, tmp_path / "short", validate=False)
    AcceleratorState._reset_state(reset_partial_state=True)

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "steps" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, s4, tmp_path / "cut", validate=False, progress=kill)
    start = backbone(tmp_path / "short")
    assert torch.equal(backbone(tmp_path / "cut"), start)  # after 2 of 6 steps
    AcceleratorState._reset_state(reset_partial_state=True)
    run(recipe, s4, tmp_path / "cut", validate=False, resume=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    run(recipe, s4, tmp_path / "whole", validate=False)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert torch.equal(backbone(tmp_path / "cut"), backbone(tmp_path / "whole"))
    assert not torch.equal(backbone(tmp_path / "whole"), start)


def test_part_to_freeze_must_exist(s4: Path, vggish: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'freeze.bakbone': the student 'tpavi' has no such part; did you mean 'back"):
        run(small(vggish, "freeze={bakbone: 2}"), s4, tmp_path, validate=False)


def test_deterministic_unclipped_training_with_few_validation_clips(s4: Path, vggish: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    recipe = small(vggish, "deterministic=true", "optimizer.clip_norm=null", "validation.clips=1", "max_steps=1")
    try:
        done = run(recipe, s4, tmp_path, progress=lambda *event: calls.append(event))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert done.best is not None and ("validation", 1, 1) in calls


def test_gradient_accumulation_equals_one_batch(s4: Path, vggish: Path, tmp_path: Path) -> None:
    plain = "model={backbone: pvt_v2_tiny, side: 32, channels: 8, inner: 4}"
    run(small(vggish, plain, "batch=4", "max_steps=1"), s4, tmp_path / "one", validate=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    run(small(vggish, plain, "batch=4", "accumulate=4", "max_steps=1"), s4, tmp_path / "four", validate=False)
    # Batch normalization differs per micro-batch, but has no effect in the first step (weight 0).
    assert losses(tmp_path / "one")[0][1] == pytest.approx(losses(tmp_path / "four")[0][1], abs=1e-6)
    one, four = (load_student(str(tmp_path / name)).state_dict() for name in ("one", "four"))
    same = [torch.allclose(one[n], four[n], atol=1e-5) for n in one if n.startswith(("decoder", "necks"))]
    assert sum(same) / len(same) > 0.9  # AdamW's first step has the gradient's sign, which is noise where it is 0


def test_files_of_a_finished_training(s4: Path, vggish: Path, tmp_path: Path) -> None:
    done = run(small(vggish, "validation.every=1"), s4, tmp_path)
    assert done.best is not None and 0 <= done.best <= 1 and done.best_step in (2, 4, 6)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "curve.svg", "train.json", "vggish/model.safetensors"} <= names
    assert not [name for name in names if Path(name).suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]
    assert "validation: miou" in (tmp_path / "curve.svg").read_text("utf-8")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [2, 4, 6]
    best = max(line["validation"]["miou"] for line in lines if "validation" in line)
    assert best == done.best
    facts = load_student(str(tmp_path)).facts
    assert facts["score"] == {"figure": "miou", "value": done.best}
    assert facts["audio"]["fingerprint"] == load_vggish(str(vggish)).fingerprint


def test_saved_students_load_equal_and_other_folders_are_refused(s4: Path, vggish: Path, tmp_path: Path) -> None:
    run(small(vggish, "max_steps=1"), s4, tmp_path / "run", validate=False)
    student = load_student(str(tmp_path / "run"))
    student.save_pretrained(tmp_path / "copy")  # the hub's mixin
    assert (tmp_path / "copy" / "README.md").is_file()
    copy = type(student).from_pretrained(tmp_path / "copy")
    assert copy.config == student.config and copy.facts == student.facts
    own, copied = student.state_dict(), copy.state_dict()
    assert all(torch.equal(own[name], copied[name]) for name in own | copied)
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    for change, sentence in (
        ({"student": "ov-avss"}, "is a student 'ov-avss', not 'tpavi'"),
        ({"model_type": "clap"}, "is of the kind 'clap', not a student"),
        ({"format": 99}, "was saved by another version of openavs; update openavs or train it again"),
        ({"config": {**config["config"], "channels": 12}}, "do not fit its configuration"),
        ({"config": {**config["config"], "chanels": 12}}, "did you mean 'channels'"),
    ):
        (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=sentence):
            type(student).from_pretrained(tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json of the model '.*' is not a JSON object; copy the folder again"):
        load_student(str(tmp_path / "copy"))
    (tmp_path / "copy" / "model.safetensors").rename(tmp_path / "copy" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle weights only"):
        load_student(str(tmp_path / "copy"))


def test_used_folder_resumes_only_the_same_training(s4: Path, vggish: Path, tmp_path: Path) -> None:
    run(small(vggish, "max_steps=1"), s4, tmp_path / "run", validate=False)
    with pytest.raises(InputError, match="holds a training; continue it with --resume"):
        run(small(vggish), s4, tmp_path / "run", validate=False)
    with pytest.raises(InputError, match="holds a training that differs in optimizer, seed;"):
        run(small(vggish, "seed=5", "optimizer.lr=1"), s4, tmp_path / "run", validate=False, resume=True)
    state = tmp_path / "run" / "last" / "training" / "optimizer.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ModelError, match="is damaged or of another optimizer"):
        run(small(vggish), s4, tmp_path / "run", validate=False, resume=True)
    (tmp_path / "run" / "train.json").write_text("{}")
    with pytest.raises(InputError, match=r"train\.json was not written by this openavs; choose another --out"):
        run(small(vggish), s4, tmp_path / "run", validate=False, resume=True)
    (tmp_path / "run" / "train.json").unlink()
    with pytest.raises(InputError, match="already holds a model; choose another --out"):
        run(small(vggish), s4, tmp_path / "run", validate=False)


class Fragile(Student):
    """A student with a NaN loss for certain audio features."""

    name = "fragile"
    poison: float = 0.0

    from openavs.training.models.tpavi import TpaviConfig as Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def view(self, training: bool) -> Any:
        from openavs.training.base import TransformConfig

        return TransformConfig((32,))

    def forward(self, batch: Any) -> Any:
        features = batch.audio.sum(dim=(1, 2))
        return torch.where((features - type(self).poison).abs() < 1e-3, torch.nan, features * 0 + self.weight)

    def loss(self, output: Any, batch: Any) -> Any:
        return {"loss": output.mean()}

    def predict(self, batch: Any, classes: Any) -> Any:
        raise NotImplementedError


def test_nan_loss_names_the_clip_and_keeps_the_checkpoint(
    s4: Path, vggish: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset("s4", s4, "train")
    features = FeatureCache(load_vggish(str(vggish))).of_all(dataset.clips)
    recipe = small(vggish, "student=fragile", "model={}", "batch=2", "save_every=1", "max_steps=2")
    from openavs.training.dataset import shuffled

    bad = dataset.clips[shuffled(4, recipe.seed, 0)[3]]  # part of the second step
    monkeypatch.setattr(Fragile, "poison", float(features[bad.id].sum()))
    monkeypatch.setattr("openavs.training.trainer.student_class", lambda name: Fragile)
    with pytest.raises(TrainingError) as caught:
        train(recipe, dataset, None, tmp_path, device="cpu")
    assert f"the loss is nan at step 2 with {bad.id}; the checkpoint of step 1" in str(caught.value)
    assert (tmp_path / "last" / "model.safetensors").is_file()


def test_pseudo_labels_replace_the_ground_truth(
    s4: Path, vggish: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset("s4", s4, "train")
    for clip in dataset.clips[:2]:
        path = tmp_path / "labels" / clip.predictions[0]
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((224, 224), dtype=np.uint8)).save(path)
    run(small(vggish), s4, tmp_path / "out", validate=False, labels=tmp_path / "labels")
    assert "2 of 4 clips have no label and are left out" in caplog.text
    assert json.loads((tmp_path / "out" / "train.json").read_text())["data"]["clips"] == 2
    assert losses(tmp_path / "out")[-1][1] != losses_on_truth(s4, vggish, tmp_path)


def losses_on_truth(s4: Path, vggish: Path, folder: Path) -> float:
    AcceleratorState._reset_state(reset_partial_state=True)
    run(small(vggish), s4, folder / "truth", validate=False)
    return losses(folder / "truth")[-1][1]


# ------------------------------------------------------------------------------------------- in the place of a pipeline


@pytest.fixture(scope="module")
def trained(s4: Path, vggish: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    out = tmp_path_factory.mktemp("trained") / "run"
    run(small(vggish), s4, out)
    return out


def test_evaluate_writes_probabilities_and_scores_them(openavs: Any, s4: Path, trained: Path, tmp_path: Path) -> None:
    command = ["evaluate", "s4", "--root", s4, "--pipeline", f"student:{trained}", "--out", tmp_path, "--device", "cpu"]
    done = openavs(*command, "--offline", "--json", "-q")
    assert done.code == 0, done.err
    assert done.json()["recipe"] == "student:run" and 0 <= done.json()["metrics"]["miou"] <= 1
    dataset = open_dataset("s4", s4, "test")
    clip = dataset.clips[0]
    values = np.asarray(Image.open(tmp_path / "predictions" / clip.predictions[0]))
    assert values.dtype == np.uint8 and len(np.unique(values)) > 2  # gray values, not only 0 and 255
    (
        tmp_path / "predictions" / clip.predictions[0]
    ).unlink()  # it is not among the results, so the clip is processed again
    assert openavs(*command, "--offline", "--json", "-q").json()["metrics"] == done.json()["metrics"]
    again = np.asarray(Image.open(tmp_path / "predictions" / clip.predictions[0]))
    assert np.array_equal(again, values)


def test_pipeline_predicts_the_maps_that_validation_scores(s4: Path, trained: Path) -> None:
    from openavs.training.dataset import read_frames
    from tests.benchmark_clips import open_benchmark_clip

    dataset = open_dataset("s4", s4, "val")
    chain = StudentPipeline.from_recipe(load_recipe(f"student:{trained}", ["device=cpu", "offline=true"]))
    clip = dataset.clips[0]
    features = FeatureCache(chain.extractor).of(clip)
    direct = predict_clip(chain.student, clip.id, read_frames(clip, range(5)), features, None)
    soft = chain.soft(open_benchmark_clip(clip, clip.id))
    assert direct.probability is not None
    assert np.array_equal(soft.probability, np.rint(direct.probability * 255).astype(np.uint8))
    assert [result.frames for result in chain.run([open_benchmark_clip(clip, clip.id)])] == [soft.result.frames]


def test_student_recipe_has_no_stages(trained: Path) -> None:
    with pytest.raises(InputError, match="is a trained student; it runs in evaluate, segment and label"):
        Pipeline.from_recipe(load_recipe(f"student:{trained}"))


def test_student_with_an_embedded_backbone_warns_about_real_clips(
    trained: Path, openavs: Callable[..., Any], tmp_path: Path
) -> None:
    student, video = tmp_path / "student", tmp_path / "dog.mp4"
    shutil.copytree(trained, student)
    config = json.loads((student / "config.json").read_text())
    config["facts"]["audio"]["model"] = "openavs:tiny/vggish"
    (student / "config.json").write_text(json.dumps(config))
    write_clip(video, plan_scene([Role("dog", (True, True))], scene_rng("test", 3), 2, (64, 96)), fps=5)
    for place, warned in ((trained, False), (student, True)):
        out = tmp_path / f"out-{warned}"
        done = openavs("segment", video, "--pipeline", f"student:{place}", "--device", "cpu", "--out", out)
        assert done.code == 0, done.err
        assert ("trained on synthetic clips only" in done.err) is warned
        report = (out / "clips" / "dog" / "report.html").read_text("utf-8")
        assert ("trained on synthetic clips only" in report) is warned


def test_student_requires_all_frames_and_audio(s4: Path, trained: Path) -> None:
    from tests.benchmark_clips import open_benchmark_clip

    chain = StudentPipeline.from_recipe(load_recipe(f"student:{trained}", ["device=cpu"]))
    clip = open_benchmark_clip(open_dataset("s4", s4, "val").clips[0], "a clip")
    with pytest.raises(InputError, match="a clip has no sound track; give its sound with --audio FILE"):
        chain(replace(clip, audio=None, source=None))
    cut = replace(clip, source="cut.mp4", frames=lambda wanted: list(clip.frames(wanted))[:3])
    with pytest.raises(InputError, match=r"cut\.mp4 lacks 2 frames; it is cut short"):
        chain(cut)


def test_long_clip_is_read_once_and_predicted_in_chunks(s4: Path, trained: Path) -> None:
    """Each ten seconds are predicted like a separate clip; at most the frames of two chunks are in memory."""
    from openavs.structures.types import Frame
    from tests.benchmark_clips import open_benchmark_clip

    chain = StudentPipeline.from_recipe(load_recipe(f"student:{trained}", ["device=cpu"]))
    short = open_benchmark_clip(open_dataset("s4", s4, "val").clips[0], "a clip")
    assert short.audio is not None
    images = [frame.image for frame in short.frames(None)]
    rate = short.audio.rate
    samples = np.tile(short.audio.samples[..., : 5 * rate], 9)
    passes: list[object] = []
    held: list[int] = []

    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        passes.append(wanted)
        made: list[weakref.ref[Any]] = []
        for i in range(45):
            image = images[i % 5].copy()
            made.append(weakref.ref(image))
            held.append(sum(image() is not None for image in made))
            yield Frame(i, i + 0.5, image)

    times = tuple(i + 0.5 for i in range(45))
    long = replace(short, times=times, frames=frames, audio=replace(short.audio, samples=samples))
    soft = chain.soft(long)
    assert passes == [None]
    assert [(frame.index, frame.time) for frame in soft.result.frames] == list(enumerate(times))
    assert np.array_equal(soft.probability[:10], soft.probability[10:20])
    assert soft.probability.shape == (45, *long.size)
    assert chain(long).frames == soft.result.frames
    assert max(held) <= 21
    assert [f.segments for f in soft.result.frames[:10]] == [f.segments for f in soft.result.frames[10:20]]


def test_student_reports_out_of_memory(s4: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openavs.errors import OutOfMemoryError
    from tests.benchmark_clips import open_benchmark_clip

    chain = StudentPipeline.from_recipe(load_recipe(f"student:{trained}", ["device=cpu"]))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(chain.student, "predict", full)
    with pytest.raises(OutOfMemoryError, match="use a smaller model"):
        chain(open_benchmark_clip(open_dataset("s4", s4, "val").clips[0], "a clip"))


def test_segment_and_label_take_a_student(openavs: Any, s4: Path, trained: Path, tmp_path: Path) -> None:
    video = tmp_path / "scene.mp4"
    assert openavs("synth", "clip", "--out", video).code == 0
    shared = ("--pipeline", f"student:{trained}", "--device", "cpu", "--offline", "--json", "-q")
    done = openavs("segment", video, "--out", tmp_path / "segment", *shared)
    assert done.code == 0, done.err
    (clip,) = done.json()["clips"]
    assert clip["status"] == "ok" and (Path(clip["folder"]) / "overlay.mp4").is_file()
    printed = openavs("segment", video, "--out", tmp_path / "segment", *shared[:-2]).out
    assert "scene: found " in printed and "captions" not in printed
    done = openavs("label", s4, "--split", "val", "--workers", "1", "--out", tmp_path / "label", *shared)
    assert done.code == 0, done.err
    dataset = open_dataset("s4", s4, "val")
    assert all((tmp_path / "label" / "labels" / path).is_file() for c in dataset.clips for path in c.predictions)


def test_student_uses_only_its_own_vggish(trained: Path, vggish: Path, tmp_path: Path) -> None:
    from openavs.training.models.backbones import Vggish, VggishConfig, save_vggish

    student = load_student(str(trained))
    student.save_pretrained(tmp_path / "student")
    torch.manual_seed(5)
    save_vggish(Vggish(VggishConfig(width=4, hidden=32)), tmp_path / "student" / "vggish")
    with pytest.raises(ModelError, match="was trained with another VGGish"):
        StudentPipeline.from_recipe(load_recipe(f"student:{tmp_path / 'student'}", ["device=cpu"]))
    student.facts.clear()
    student.save_pretrained(tmp_path / "alone" / "student")
    with pytest.raises(ModelError, match=r"does not record its VGGish; put its folder at .*/vggish"):
        StudentPipeline.from_recipe(load_recipe(f"student:{tmp_path / 'alone' / 'student'}", ["device=cpu"]))


# ----------------------------------------------------------------------------------------------------- the command line


def test_train_command_reports_its_result(openavs: Any, s4: Path, vggish: Path, tmp_path: Path) -> None:
    command = ["train", "tpavi", "--root", s4, "--benchmark", "s4", "--out", tmp_path / "run", "--device", "cpu"]
    command += ["--max-steps", "2", "model.side=32", "model.channels=8", f"audio={vggish}", "batch=2", "--json"]
    begun = f"openavs: {tmp_path / 'run'} has no checkpoint to resume; starting from the beginning\n"
    done = openavs(*command, "--resume")
    assert done.code == 0, done.err
    assert begun in done.err
    assert done.json()["steps"] == 2 and done.json()["pipeline"] == f"student:{tmp_path / 'run'}"
    assert openavs(*command, "-q").code == 2
    resumed = openavs(*command, "--resume")
    assert resumed.code == 0 and begun not in resumed.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("tpavvi",), "there is no student 'tpavvi'; did you mean 'tpavi'"),
        (("tpavi", "optimizer.lrr=1"), "there is no key 'optimizer.lrr'; did you mean 'lr'"),
        (("tpavi", "model.backbon=x"), "has no option 'backbon'; did you mean 'backbone'"),
        (("tpavi", "init.head=x"), "has no part 'head' to start from"),
        (("tpavi", "--recipe", "tpavi-s5"), "there is no training recipe 'tpavi-s5'"),
        (("ov-avss", "--recipe", "tpavi-s4"), "is for tpavi, not ov-avss"),
        (("tpavi", "batch=3", "accumulate=2"), "a batch of 3 clips cannot be split evenly"),
        (("tpavi", "--recipe", "./mine.yaml"), "the training recipe './mine.yaml' does not exist"),
        (("tpavi", "model.frames=0"), "'model.frames' is at least 1, not 0"),
        (("tpavi", "audio=/nowhere"), "the model folder '/nowhere' does not exist"),
        (("tpavi", "--labels", "/nowhere"), "the folder of labels /nowhere does not exist"),
        pytest.param(
            ("tpavi", "tensorboard=true"),
            "'tensorboard: true' needs the package tensorboard: pip install tensorboard",
            marks=pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed"),
        ),
    ],
)
def test_wrong_input_is_reported_in_one_line(
    openavs: Any, s4: Path, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    data = ("--root", s4, "--benchmark", "s4", "--out", tmp_path / "run", "--device", "cpu", "-q")
    done = openavs("train", *words, *data)
    assert done.code == 2 and sentence in done.err and "Traceback" not in done.err


def test_unknown_student_prints_only_its_error(openavs: Any, s4: Path, tmp_path: Path) -> None:
    done = openavs("train", "foo", "--root", s4, "--benchmark", "s4", "--out", tmp_path / "run")
    assert done.code == 2
    assert done.err == "openavs: there is no student 'foo'; there are avsegformer, ov-avss, sama-avs, tpavi\n"


def test_example_of_the_docs_is_a_student(openavs: Any, s4: Path, vggish: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "students.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# my_student\.py\n.*?)```", text, re.DOTALL)
    (tmp_path / "my_student.py").write_text(code, encoding="utf-8")
    name = f"{tmp_path / 'my_student.py'}:Mine"
    command = ["train", name, "--root", s4, "--benchmark", "s4", "--out", tmp_path / "run", "--device", "cpu"]
    done = openavs(*command, "--max-steps", "8", "optimizer.lr=0.05", f"audio={vggish}", "--json", "-q")
    assert done.code == 0, done.err
    curve = [loss for _, loss in losses(tmp_path / "run")]
    assert curve[-1] < curve[0]
    from openavs.utils.plugins import load_file_class

    assert load_student(str(tmp_path / "run"), cls=load_file_class(name)).config.side == 64


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the package tensorboard")
def test_losses_are_written_for_tensorboard(s4: Path, vggish: Path, tmp_path: Path) -> None:
    run(small(vggish, "tensorboard=true", "max_steps=1"), s4, tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_students_of_installed_packages_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = EntryPoint("mine", f"{__name__}:Fragile", "openavs.training")
    monkeypatch.setattr("openavs.training.io.entry_points", lambda group: [mine] if group == mine.group else [])
    assert student_class("mine") is Fragile
    with pytest.raises(InputError, match="there is no student 'mne'; did you mean 'mine'"):
        student_class("mne")
    (tmp_path / "other.py").write_text("class Other:\n    pass\n")
    with pytest.raises(InputError, match="is not a student: its class must derive from openavs"):
        student_class(f"{tmp_path / 'other.py'}:Other")


def test_device_does_not_select_gpus() -> None:
    with pytest.raises(InputError, match="a training takes --device auto or cpu, not 'cuda:1'; choose GPUs by acc"):
        check_device("cuda:1")


def test_recipe_can_be_a_file(tmp_path: Path) -> None:
    shipped = load_training_recipe("tpavi-tiny", ["seed=7"])
    (tmp_path / "mine.yaml").write_text(shipped.to_yaml())
    assert load_training_recipe(tmp_path / "mine.yaml") == shipped


def test_every_recipe_is_complete() -> None:
    for name in training_recipe_names():
        recipe = load_training_recipe(name)
        assert recipe.summary and recipe.steps(1000) > 0
    assert {"tpavi-tiny", "tpavi-s4", "tpavi-ms3", "tpavi-avss"} <= set(training_recipe_names())
    published = [load_training_recipe(name) for name in ("tpavi-s4", "tpavi-ms3", "tpavi-avss")]
    assert [recipe.epochs for recipe in published] == [15, 30, 60]
    assert {(r.batch, r.optimizer.kind, r.optimizer.lr, r.seed) for r in published} == {(4, "adam", 1e-4, 123)}
    published = [load_training_recipe(f"avsegformer-{name}") for name in ("s4", "ms3", "avss")]
    assert [(r.epochs, r.freeze, r.batch) for r in published] == [
        (30, {"backbone": 5}, 2),
        (60, {"backbone": 10}, 2),
        (30, {}, 4),
    ]
    assert {(r.optimizer.kind, r.optimizer.lr, r.optimizer.weight_decay) for r in published} == {("adamw", 2e-5, 0.01)}


def test_learning_rate_follows_the_schedule() -> None:
    schedule = load_training_recipe(
        "tpavi-tiny", ["schedule={warmup: 4, milestones: [0.5, 0.9], factor: 0.1}"]
    ).schedule
    rates = [schedule.rate(step, 100) for step in (0, 1, 3, 10, 49, 50, 89, 90)]
    assert rates == pytest.approx([0.25, 0.5, 1, 1, 1, 0.1, 0.1, 0.01])
    wave = load_training_recipe("tpavi-tiny", ["schedule={warmup: 4, cosine: true}"]).schedule
    assert [wave.rate(step, 100) for step in (4, 50, 75)] == pytest.approx([0.99606, 0.5, 0.14645], abs=1e-5)
    assert wave.rate(99, 100) < 0.001


def test_label_maps_of_five_and_ten_frames_are_trained_together(
    openavs: Any, avss: Path, vggish: Path, tmp_path: Path
) -> None:
    data = ("--root", avss, "--benchmark", "avss", "--out", tmp_path / "run", "--device", "cpu", "--json", "-q")
    model = "model={backbone: pvt_v2_tiny, side: 32, channels: 8, inner: 4, avm: 0.5, crop: true}"
    settings = (model, "init={}", "batch=5")
    done = openavs("train", "tpavi", *settings, f"audio={vggish}", "--max-steps", "2", *data)
    assert done.code == 0, done.err
    assert done.json()["best"]["figure"] == "miou"
    student = load_student(str(tmp_path / "run"))
    assert len(student.config.classes) == 71
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "mask", "avm"} <= set(lines[0])
    shared = ("--split", "val", "--out", tmp_path / "val", "--device", "cpu", "--offline", "--json", "-q")
    done = openavs("evaluate", "avss", "--root", avss, "--pipeline", f"student:{tmp_path / 'run'}", *shared)
    assert done.code == 0, done.err
    assert openavs("evaluate", "s4", "--root", avss, "--pipeline", f"student:{tmp_path / 'run'}", *shared).code == 2


@pytest.mark.slow
def test_two_processes_train_like_one(s4: Path, vggish: Path, tmp_path: Path) -> None:
    """Batch normalization sees half of the clips per process, which has little effect at first."""
    plain = "model={backbone: pvt_v2_tiny, side: 32, channels: 8, inner: 4}"
    recipe = small(vggish, plain, "batch=4", "max_steps=3")
    run(recipe, s4, tmp_path / "one", validate=False)
    (tmp_path / "two.yaml").write_text(recipe.to_yaml())
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "openavs",
        "train",
        "tpavi",
    ]
    command += ["--root", str(s4), "--benchmark", "s4", "--out", str(tmp_path / "two"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, "--recipe", str(tmp_path / "two.yaml")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("3 steps") == 1  # only the first process prints
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in two] == [1, 2, 3]
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in two], abs=1e-3)
