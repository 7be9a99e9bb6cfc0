"""Negatives of AVSBench-Robust: exchanged sounds, pairs of clips, FPR, and the refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.datasets.tables import S4_CATEGORIES
from openavs.evaluation.evaluator import evaluate
from openavs.evaluation.negatives import KINDS, fpr_figures, negative_split, offscreen_pairs
from openavs.evaluation.predictor import Predictor
from openavs.media.audio import read_audio, replacement_sound
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Clip, ClipResult, FrameResult, Segment
from openavs.synthetic.datasets import write_layout
from tests.conftest import Outcome

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("negatives")
    write_layout("s4", path / "s4", {"test": 3}, seed=5)
    write_layout("ms3", path / "ms3", {"test": 3}, seed=5)
    return path


def level_gate(clip: Clip) -> ClipResult:
    """Marks the upper half of every frame whose second is louder than -60 dBFS."""
    height, width = clip.size
    mask = np.zeros(clip.size, dtype=bool)
    mask[: height // 2] = True
    frames = []
    for i, time in enumerate(clip.times):
        assert clip.audio is not None
        loud = clip.audio.cut(i, i + 1).dbfs >= -60
        found = (Segment(mask_to_rle(mask), (0, 0, width, height // 2), "thing", 1.0, 1.0),) if loud else ()
        frames.append(FrameResult(i, time, not loud, segments=found))
    return ClipResult(clip.id, clip.size, tuple(frames))


def test_fpr_equals_the_published_formula_on_random_predictions() -> None:
    rng = np.random.default_rng(3)
    clips = [rng.random((5, 12, 16)) for _ in range(7)]
    clips[2][:] = 0.0
    batches = []
    for start in range(0, 7, 4):  # of 4 clips and of 3
        batch = np.concatenate(clips[start : start + 4])
        per_frame = (batch > 0.5).sum(axis=(1, 2)) / (12 * 16 + 1e-7)
        batches.append(per_frame.mean())
    figures = fpr_figures([np.mean(clip > 0.5, axis=(1, 2)) for clip in clips], "official", 4)
    assert figures["fpr"] == figures["official"] == pytest.approx(np.mean(batches), abs=1e-6)
    assert figures["fixed"] == pytest.approx(np.mean([clip > 0.5 for clip in clips]), abs=1e-9)
    assert figures["left_empty"] == pytest.approx(1 / 7)
    assert figures["interval"][0] <= figures["fixed"] <= figures["interval"][1]


def test_generated_sounds_have_their_level_and_are_seeded() -> None:
    silence, noise, room = (replacement_sound(name, 5) for name in ("silence", "noise:1", "room:1"))
    assert [len(sound.samples) for sound in (silence, noise, room)] == [5 * 44_100] * 3
    assert silence.dbfs == -np.inf
    assert room.dbfs == pytest.approx(-50, abs=0.01)
    assert noise.dbfs == pytest.approx(10 * np.log10(1 / 3), abs=0.05)  # uniform in [-1, 1)
    low, high = (np.abs(np.fft.rfft(noise.samples))[a:b].mean() for a, b in ((1, 50_000), (50_000, 100_000)))
    assert low == pytest.approx(high, rel=0.02), "white: the same at all frequencies"
    assert np.array_equal(noise.samples, replacement_sound("noise:1", 5).samples)
    assert not np.array_equal(noise.samples, replacement_sound("noise:2", 5).samples)
    with pytest.raises(InputError, match="there are silence, noise:SEED and room:SEED"):
        replacement_sound("noise", 5)


def s4_of(names: list[tuple[str, str]]) -> Dataset:
    clips = tuple(
        BenchmarkClip(name, "test", (), Path(f"/{name}.wav"), (), (), group=category) for name, category in names
    )
    return Dataset("s4", "binary", Path("/"), "test", clips, lambda clip: np.zeros((0, 1, 1)), lambda clip, path: None)


def test_s4_pairs_obey_the_published_rule_in_any_order() -> None:
    names = [(f"{k}{category}", category) for k in range(3) for category in S4_CATEGORIES]
    pairs = offscreen_pairs(s4_of(names))
    assert pairs == offscreen_pairs(s4_of(names[::-1]))
    assert [clip for clip, _, _ in pairs] == sorted(name for name, _ in names)
    groups = {"music": set[str](), "human": set[str](), "animal": set[str](), "device": set[str]()}
    with (Path(__file__).parents[2] / "eval/offscreen_classes.csv").open() as file:
        for row in csv.DictReader(file):
            if row["benchmark"] == "s4":
                groups[row["group"]].add(row["class"])
    assert set.union(*groups.values()) == set(S4_CATEGORIES)
    kind = {category: group for group, held in groups.items() for category in held}
    category_of = dict(names)
    seen = {(kind[category_of[clip]], kind[category_of[partner]]) for clip, partner, _ in pairs}
    assert seen == {
        *(("music", "animal"), ("music", "device"), ("human", "animal"), ("human", "device")),
        *(("animal", "music"), ("animal", "device")),
        *(("device", "music"), ("device", "human"), ("device", "animal")),
    }


def test_ms3_pairs_use_the_classes_of_avsbench_semantic(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset("ms3", root / "ms3")
    assert [reason.startswith("any other clip") for _, _, reason in offscreen_pairs(dataset)] == [True] * 3
    assert "no metadata.csv of AVSBench-semantic" in caplog.text
    first, second, third = (clip.id for clip in dataset.clips)
    rows = ["vid,uid,s_min,s_sec,a_obj,split,label"]
    for clip, objects in ((first, "dog_man"), (second, "guitar"), (third, "car_keyboard")):
        rows.append(f"{clip},{clip},0,0,{objects},test,v1m")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    pairs = {clip: (other, why) for clip, other, why in offscreen_pairs(replace(dataset, root=tmp_path))}
    assert pairs[first] == (third, "animal and human, device")  # music is avoided beside a human
    assert pairs[second] == (third, "music, device")
    assert pairs[third] == (first, "device, animal and human")


def test_the_sounds_reach_the_system_and_no_file_is_written(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", root / "s4")
    before = sorted(path for path in (root / "s4").rglob("*"))
    system = Predictor({"device": "cpu"}, lambda: level_gate)
    done = evaluate(system, dataset, tmp_path, negatives=KINDS, limit=2)
    assert done.report is not None and not done.failed
    assert sorted(path for path in (root / "s4").rglob("*")) == before
    fpr = {kind: row["fpr"] for kind, row in done.report["negatives"].items()}
    assert fpr == {"silence": 0.0, "noise": 0.5, "offscreen": fpr["offscreen"], "room": 0.5}
    silence = done.report["negatives"]["silence"]
    assert (silence["left_empty"], silence["frames"], silence["worst"]) == (1.0, 10, [])
    assert 0 < done.report["robustness"]["selective_miou"] < done.report["metrics"]["miou"]
    with (tmp_path / "negatives/offscreen/pairs.csv").open() as file:
        assert [row["clip"] for row in csv.DictReader(file)] == sorted(clip.id for clip in dataset.clips)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Largest false positives with white noise" in page and "with digital silence" not in page
    partner = {clip: other for clip, other, _ in offscreen_pairs(dataset)}
    heard = {clip.id: clip.audio for clip in dataset.clips}
    swapped = negative_split(dataset, "offscreen").dataset.clips[0]
    assert swapped.audio == heard[partner[swapped.id]] != heard[swapped.id]
    assert not negative_split(dataset, "noise").dataset.read_truth(swapped).any()


def test_the_published_folders_are_read_where_they_exist(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("ms3", root / "ms3")
    made = root / "ms3/ms3_data/audio_wav_noise/test"
    made.mkdir(parents=True)
    for clip in dataset.clips:
        made.joinpath(clip.audio.name).write_bytes(clip.audio.read_bytes())
    split = negative_split(dataset, "noise")
    assert split.dataset.clips[0].audio == made / dataset.clips[0].audio.name
    assert (split.source, read_audio(split.dataset.clips[0].audio) is not None) == (
        "audio_wav_noise/ of the published generator",
        True,
    )
    made.joinpath(dataset.clips[1].audio.name).unlink()
    with pytest.raises(InputError, match=r"lacks the sounds of 1 of 3 clips \(first: .*complete it, or rename it"):
        negative_split(dataset, "noise")


def test_the_command_and_score_agree(openavs: Run, root: Path, tmp_path: Path) -> None:
    words = ("s4", "--root", root / "s4", "--limit", 1)
    out = tmp_path / "out"
    done = openavs("evaluate", *words, "--pipeline", "tiny", "--out", out, "--negatives", "silence", "--json")
    assert done.code == 0, done.err
    answer = done.json()
    assert answer["negatives"]["silence"]["fpr"] == 0.0
    assert set(answer["robustness"]) == {"selective_miou", "fpr"}
    given = f"silence={out / 'negatives/silence/predictions'}"
    score = ("score", *words, "--predictions", out / "predictions", "--negatives", given)
    scored = openavs(*score, "--json").json()
    assert scored["robustness"] == answer["robustness"]
    assert scored["negatives"]["silence"] == answer["negatives"]["silence"] | {"source": "given predictions"}
    assert "digital silence" in openavs(*score).out
    report = json.loads((out / "report.json").read_text())
    assert report["negatives"] == answer["negatives"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("evaluate", "s4", "--negatives", "silense"), "did you mean 'silence'?"),
        (("evaluate", "s4", "--negatives", ","), "names no kind"),
        (("score", "s4", "--predictions", ".", "--negatives", "silence"), "write KIND=DIR, such as silence=DIR"),
        (("score", "s4", "--predictions", ".", "--negatives", "quiet=."), "no kind 'quiet'"),
    ],
)
def test_wrong_usage_is_one_sentence(openavs: Run, root: Path, words: tuple[str, ...], sentence: str) -> None:
    done = openavs(*words, "--root", root / "s4")
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err and "Traceback" not in done.err


def test_missing_negative_masks_are_refused(openavs: Run, root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", root / "s4")
    for clip in dataset.clips:
        for place, mask in zip(clip.predictions, dataset.read_truth(clip), strict=True):
            (tmp_path / "own" / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(tmp_path / "own" / place)
    (tmp_path / "none").mkdir()
    words = ("score", "s4", "--root", root / "s4", "--predictions", tmp_path / "own")
    done = openavs(*words, "--negatives", f"silence={tmp_path / 'none'}")
    assert done.code == 2 and "15 of 15 predicted masks are missing" in done.err
    same = openavs(*words, "--negatives", f"silence={tmp_path / 'own'}", "--json").json()
    assert same["negatives"]["silence"]["fpr"] > 0
    assert same["robustness"]["selective_miou"] == 0.0, "marks that do not depend on the sound count nothing"
