"""AVSBench's layouts: read back by the benchmark's own readers and scored against themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.mask_io import decode_palette
from openavs.evaluation.datasets.tables import CLASSES
from openavs.evaluation.scorer import score
from openavs.exports.avsbench import clip_chunks, to_label_map
from openavs.exports.base import Categories, ExportItem, run_items
from openavs.exports.registry import ExportOptions, export
from openavs.media.audio import read_audio
from openavs.structures.masks import segments_to_mask
from openavs.structures.types import ClipResult
from tests.exports.conftest import LEFT, SIZE, by_hand, pair, ring

DOG, BELL = CLASSES.index("dog"), CLASSES.index("bell")


def test_the_ms3_reader_reads_it_and_it_scores_one_against_itself(run: Path, tmp_path: Path) -> None:
    told = export("avsbench-object", run_items(run), tmp_path / "ms3", ExportOptions(Categories(), split="test"))
    dataset = open_dataset("ms3", tmp_path / "ms3", "test")
    assert [clip.id for clip in dataset.clips] == ["one_0_5000", "two_0_5000"]
    (first, _) = dataset.clips
    masks = dataset.read_truth(first)
    assert masks.shape == (5, 224, 224)
    union = Image.fromarray(ring() | pair()).resize((224, 224), Image.Resampling.NEAREST)
    assert np.array_equal(masks[0], np.asarray(union))
    assert score(dataset, tmp_path / "ms3" / "ms3_data" / "gt_masks").figures["official"]["miou"] == 1.0
    assert told.notes == ["1 s at the ends of clips are left out: the layout's clips last 5 s"]


def test_frames_and_sound_are_those_of_the_video(run: Path, tmp_path: Path) -> None:
    export("avsbench-object", run_items(run), tmp_path / "ms3", ExportOptions(Categories(), split="test"))
    clip = open_dataset("ms3", tmp_path / "ms3", "test").clips[0]
    with Image.open(clip.frames[0]) as picture:
        assert picture.size == (224, 224)
        assert np.abs(np.asarray(picture)[100, 20].astype(int) - LEFT).max() < 12
    sound = read_audio(clip.audio)
    assert sound is not None and (sound.rate, sound.duration) == (16000, 5.0)
    spectrum = np.abs(np.fft.rfft(sound.samples[16000:32000]))
    assert int(spectrum.argmax()) == 440


def test_a_clip_without_sound_is_written_with_silence(mute: ExportItem, tmp_path: Path) -> None:
    told = export("avsbench-object", [mute], tmp_path / "ms3", ExportOptions(Categories(), split="test"))
    assert told.notes == ["1 clip without audio: it is written as silence"]
    sound = read_audio(open_dataset("ms3", tmp_path / "ms3", "test").clips[0].audio)
    assert sound is not None and (sound.rate, sound.duration, float(sound.samples.max())) == (16000, 5.0, 0.0)


def test_the_semantic_reader_reads_the_class_indices(run: Path, tmp_path: Path) -> None:
    export("avsbench-semantic", run_items(run), tmp_path / "avss", ExportOptions(Categories(), split="test"))
    dataset = open_dataset("avss", tmp_path / "avss", "test")
    clip = dataset.clips[0]
    assert (clip.group, clip.classes) == ("v1m", ("bell", "dog"))
    labels = np.asarray(Image.open(str(clip.truth[0])))
    assert labels.shape == SIZE and set(np.unique(labels)) == {0, DOG, BELL}
    assert np.array_equal(labels == DOG, ring()) and np.array_equal(labels == BELL, pair() & ~ring())
    colors = np.asarray(Image.open(tmp_path / "avss" / "v1m" / clip.id / "labels_rgb" / "0.png"))
    assert np.array_equal(decode_palette(colors), labels)
    assert dataset.read_truth(clip).shape == (5, 224, 224)


def test_segments_without_a_benchmark_class_are_left_out_and_reported(run: Path, tmp_path: Path) -> None:
    def rename(item: ExportItem) -> ExportItem:
        frames = [
            replace(f, segments=tuple(replace(s, phrase=s.phrase.replace("bell", "spaceship")) for s in f.segments))
            for f in item.result.frames
        ]
        return replace(item, result=replace(item.result, frames=tuple(frames)))

    told = export("avsbench-semantic", map(rename, run_items(run)), tmp_path / "avss")
    assert "5 segments of other categories left out: spaceship (5)" in told.notes


def test_a_clip_in_which_nothing_is_seen(run: Path, tmp_path: Path) -> None:
    options = ExportOptions(Categories(["violin"]), split="test")
    export("avsbench-semantic", run_items(run), tmp_path / "avss", options)
    assert open_dataset("avss", tmp_path / "avss", "test").clips[0].classes == ()


def test_long_results_are_cut_into_the_longest_clips_there_are() -> None:
    pieces = list(clip_chunks(by_hand("long", None, 28), {10: "v2", 5: "v1m"}))
    assert [(piece.subset, piece.start, len(piece.frames)) for piece in pieces] == [
        ("v2", 0, 10),
        ("v2", 10, 10),
        ("v1m", 20, 5),
    ]
    assert pieces[1].frames[0].time == 10.5


def test_more_frames_a_second_give_the_first_of_each_and_fewer_are_refused() -> None:
    result = by_hand("fast", None, 10)
    fast = replace(result, frames=tuple(replace(f, time=(f.index + 0.5) / 2) for f in result.frames))
    (piece,) = clip_chunks(fast, {5: "ms3"})
    assert [frame.index for frame in piece.frames] == [0, 2, 4, 6, 8]
    slow = replace(result, frames=result.frames[::2])
    with pytest.raises(InputError, match=r"use sample\.fps=1"):
        list(clip_chunks(slow, {5: "ms3"}))


def test_label_maps_in_python(results: list[ClipResult]) -> None:
    result = results[0]
    binary = to_label_map(result, 0)
    assert np.array_equal(binary == 255, segments_to_mask(result.frames[0].segments, SIZE))
    assert set(np.unique(to_label_map(result, 0, ["background", "bell", "dog"]))) == {0, 1, 2}
    assert np.array_equal(to_label_map(result, 0, ["bell"]) == 1, pair())
