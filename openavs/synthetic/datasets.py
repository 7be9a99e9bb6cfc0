"""Data sets of the synthetic world in the layouts of the AVSBench releases, and single clips.

The layouts are those of AVSBench-object (S4, MS3), AVSBench-semantic, AVSBench-OV and AVIS. Frames are taken at the
15/16ths of every second, as AVSBench takes them. No pickled log-mel spectrograms are written: readers use the wav.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark
from openavs.evaluation.datasets.base import synthetic_clip_name
from openavs.evaluation.datasets.tables import CLASSES
from openavs.media.audio import write_wav
from openavs.media.encode import write_video
from openavs.structures.masks import mask_to_rle, small_size, voc_palette
from openavs.structures.types import BoolMask, Clip, Frame, ImageArray
from openavs.synthetic.categories import BY_NAME
from openavs.synthetic.scenes import SPLITS, Scene, SceneSpec, sample_scene

FRAME_TIME = 15 / 16  # s into every second
INDEX = {name: index for index, name in enumerate(CLASSES)}
SEMANTIC_SIZE = (240, 320)  # AVSBench-semantic has frames of many sizes; this one is not square

Counts = Mapping[str, int]
"""Number of clips by split."""


def scene_frames(scene: Scene) -> Iterator[tuple[ImageArray, dict[str, BoolMask]]]:
    """Yield the AVSBench frame of every second and the true masks of the sounding objects."""
    for second in range(scene.seconds):
        time = second + FRAME_TIME
        yield scene.picture(time)[0], scene.truth(time)


def scene_to_clip(scene: Scene, name: str, frame_time: float = FRAME_TIME) -> Clip:
    """Return a clip made in memory, of one frame a second, `frame_time` seconds into it."""
    times = tuple(second + frame_time for second in range(scene.seconds))

    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for i, time in enumerate(times):
            if wanted is None or i in wanted:
                yield Frame(i, time, scene.picture(time)[0])

    def dense(fps: float, longest_side: int) -> Iterator[Frame]:
        height, width = small_size(scene.size, longest_side)
        for i in range(round(scene.seconds * fps)):
            image = Image.fromarray(scene.picture((i + 0.5) / fps)[0]).resize((width, height), Image.Resampling.BOX)
            yield Frame(i, (i + 0.5) / fps, np.asarray(image))

    return Clip(name, times, 1.0, scene.size, frames, scene.soundtrack(), dense_frames=dense)


def write_clip(path: Path, scene: Scene, fps: float = 25.0) -> None:
    """Write the scene as a video with audio (H.264 and AAC)."""
    pictures = (scene.picture(i / fps)[0] for i in range(round(scene.seconds * fps)))
    write_video(path, pictures, fps, scene.soundtrack())


def write_layout(
    layout: str, out: Path, counts: Counts, seed: int = 0, videos: bool = False, seconds: int | None = None
) -> dict[str, int]:
    """Write a data set under `out` and return the number of clips by split.

    Args:
        layout: `s4`, `ms3`, `avss`, `ov`, `twins`, `ref-avs` or `avis`.
        out: the root folder.
        counts: clips per split (train, val, test).
        seed: data sets of different seeds share no scene.
        videos: whether S4 and MS3 get their `raw_videos/` too; `twins` always has videos.
        seconds: length of the clips of `avis`, 61 by default; the other layouts have theirs.

    Raises:
        InputError: unknown layout or split, or a folder that already holds a data set.
    """
    writers = {"s4": _write_s4, "ms3": _write_ms3, "avss": _write_avss, "ov": _write_ov, "twins": _write_twins}
    writers["ref-avs"] = _write_ref_avs
    writers["avis"] = partial(_write_avis, seconds=seconds)
    if layout not in writers:
        raise InputError(f"there is no layout {layout!r}; there are {', '.join(writers)}")
    if unknown := set(counts) - set(SPLITS):
        raise InputError(f"there is no split {unknown.pop()!r}; there are {', '.join(SPLITS)}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give a new folder")
    writers[layout](out, {split: counts[split] for split in SPLITS if counts.get(split)}, seed, videos)
    return {split: counts.get(split, 0) for split in SPLITS}


# ------------------------------------------------------------------------------------------------ AVSBench-object


def _write_s4(out: Path, counts: Counts, seed: int, videos: bool) -> None:
    data, rows = out / "s4_data", []
    for split, name, index in _clips(counts, seed):
        cast = sample_scene("s4", split, seed, index)
        category = cast.category or ""
        folder = Path(split) / category / name
        for k, (image, masks) in enumerate(scene_frames(cast.scene), start=1):
            _save(data / "visual_frames" / folder / f"{name}_{k}.png", image)
            if split != "train" or k == 1:  # training clips have one mask
                _save(data / "gt_masks" / folder / f"{name}_{k}.png", _binary(masks, cast.scene.size))
        _write_sound_and_video(data, folder, cast.scene, videos)
        rows.append((name, 0, category, split))
    _write_csv(out / "s4_meta_data.csv", ("name", "start", "category", "split"), rows)


def _write_ms3(out: Path, counts: Counts, seed: int, videos: bool) -> None:
    data, rows = out / "ms3_data", []
    for split, clip, index in _clips(counts, seed):
        name = f"{clip}_1"
        cast = sample_scene("ms3", split, seed, index)
        for k, (image, masks) in enumerate(scene_frames(cast.scene), start=1):
            _save(data / "visual_frames" / name / f"{name}.mp4_{k}.png", image)
            _save(data / "gt_masks" / split / name / f"{name}_{k}.png", _binary(masks, cast.scene.size))
        write_wav(_parent(data / "audio_wav" / split / f"{name}.wav"), cast.scene.soundtrack())
        if videos:
            write_clip(_parent(data / "raw_videos" / f"{name}.mp4"), cast.scene)
        rows.append((name, split))
    _write_csv(out / "ms3_meta_data.csv", ("video_id", "split"), rows)


def _write_sound_and_video(data: Path, folder: Path, scene: Scene, videos: bool) -> None:
    write_wav(_parent(data / "audio_wav" / f"{folder}.wav"), scene.soundtrack())
    if videos:
        write_clip(_parent(data / "raw_videos" / f"{folder}.mp4"), scene)


# ---------------------------------------------------------------------------------- AVSBench-semantic and AVSBench-OV

_SUBSETS = ("v2", "v1s", "v2", "v1m", "v1s")  # repeated in this order; the release has 53 % v2, 43 % v1s, 4 % v1m


def semantic_layout(index: int) -> tuple[str, str]:
    """Return the AVSBench-semantic subset of a clip's index, and the layout of its scene."""
    subset = _SUBSETS[index % len(_SUBSETS)]
    return subset, {"v1s": "s4", "v1m": "ms3", "v2": "v2"}[subset]


def _semantic_clips(
    counts: Counts, seed: int, base_only: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str, SceneSpec]]:
    """Yield split, subset, uid and scene of every clip."""
    for split, clip, index in _clips(counts, seed):
        subset, layout = semantic_layout(index)
        cast = sample_scene(layout, split, seed + 500, index, size=SEMANTIC_SIZE, base_only=split in base_only)
        uid = f"{clip}_1" if subset == "v1m" else f"{clip}_0_{cast.scene.seconds * 1000}"
        yield split, subset, uid, cast


def _write_avss(out: Path, counts: Counts, seed: int, videos: bool = False) -> None:
    _write_semantic(out, _semantic_clips(counts, seed))


def _write_semantic(out: Path, clips: Iterable[tuple[str, str, str, SceneSpec]]) -> None:
    rows = []
    palette = voc_palette()
    for split, subset, uid, cast in clips:
        folder = out / subset / uid
        for k, (image, masks) in enumerate(scene_frames(cast.scene)):
            _save(folder / "frames" / f"{k}.jpg", image)
            if subset != "v1s" or split != "train" or k == 0:
                labels = _semantic(masks, cast.scene.size)
                _save(folder / "labels_semantic" / f"{k}.png", labels)
                _save(folder / "labels_rgb" / f"{k}.png", palette[labels])
        write_wav(_parent(folder / "audio.wav"), cast.scene.soundtrack())
        vid = uid if subset == "v1m" else uid.split("_")[0]
        rows.append((vid, uid, 0, 0, "_".join(_audible(cast.scene)), split, subset))
    _write_csv(out / "metadata.csv", ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"), rows)
    (out / "label2idx.json").write_text(json.dumps(INDEX, indent=0) + "\n", encoding="utf-8")


def _write_ov(out: Path, counts: Counts, seed: int, videos: bool = False) -> None:
    """Write AVSBench-OV: base categories for training, all categories for validation and test."""
    clips = list(_semantic_clips(counts, seed, base_only=("train",)))
    _write_semantic(out / "AVSBench-semantic", clips)
    folder = out / "AVSBench-openvoc"
    for split in counts:
        chosen = [(subset, uid, cast) for s, subset, uid, cast in clips if s == split]
        for _, uid, cast in chosen:
            for k, (image, _) in enumerate(scene_frames(cast.scene)):
                _save(folder / split / "JPEGImages" / uid / f"{k}.jpg", image)
        path = _parent(folder / f"avsbench_ov_{split}_{'base' if split == 'train' else 'base_novel'}.json")
        path.write_text(json.dumps(_youtube_vis(chosen), indent=None) + "\n", encoding="utf-8")


def _youtube_vis(clips: Iterable[tuple[str, str, SceneSpec]]) -> dict[str, Any]:
    """Return videos, annotations (one per clip and class) and all 70 categories in YouTube-VIS format."""
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (subset, uid, cast) in enumerate(clips, start=1):
        height, width = cast.scene.size
        files = [f"{uid}/{k}.jpg" for k in range(cast.scene.seconds)]
        video = {"id": number, "width": width, "height": height, "length": len(files), "file_names": files}
        videos.append({**video, "label": subset})
        truths = [masks for _, masks in scene_frames(cast.scene)]
        for kind in dict.fromkeys(kind for masks in truths for kind in masks):
            shown = [masks.get(kind) for masks in truths]
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "video_id": number,
                "category_id": INDEX[kind],
                "iscrowd": 0,
            }
            annotations.append(entry | _annotated(shown))
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES) if i]
    return {"videos": videos, "annotations": annotations, "categories": categories}


def _annotated(shown: Sequence[BoolMask | None]) -> dict[str, list[Any]]:
    """Return the lists of an annotation, one entry per frame."""
    return {
        "bboxes": [None if m is None else _xywh(m) for m in shown],
        "areas": [None if m is None else int(m.sum()) for m in shown],
        "segmentations": [None if m is None else _coco(m) for m in shown],
    }


def _coco(mask: BoolMask) -> dict[str, Any]:
    rle = mask_to_rle(mask)
    return {"size": list(rle.size), "counts": rle.counts}


def _xywh(mask: BoolMask) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]


def _audible(scene: Scene) -> list[str]:
    """Return the sounding classes of a clip; a source outside the frame is AVSBench's `off-the-screen`."""
    heard = [a for a in scene.actors if any(a.on)]
    names = [BY_NAME[a.kind].name for a in heard if a.visible]
    return names + ["off-the-screen"] * any(not a.visible for a in heard)


# ----------------------------------------------------------------------------------------------------------- twins

TWINS_TIME = 0.5  # s into every second
TWINS_HEADER = ("name", "split", "camera", "off_screen", "kind")


def _write_twins(out: Path, counts: Counts, seed: int, videos: bool = False) -> None:
    """Write scenes of several of a kind: frames, instance maps, audio, videos and what sounds when."""
    rows = []
    for split, name, index in _clips(counts, seed):
        scene = sample_scene("twins", split, seed, index).scene
        for k in range(scene.seconds):
            image, owners = scene.picture(k + TWINS_TIME)
            _save(out / "frames" / name / f"{k}.png", image)
            _save(out / "instances" / name / f"{k}.png", owners)
        write_wav(_parent(out / "audio" / f"{name}.wav"), scene.soundtrack())
        write_clip(_parent(out / "videos" / f"{name}.mp4"), scene)
        _parent(out / "scenes" / f"{name}.json").write_text(
            json.dumps({"instances": _instances(scene)}, indent=1) + "\n", encoding="utf-8"
        )
        [source] = {actor.kind for actor in scene.actors if any(actor.on)}
        off_screen = any(not actor.visible for actor in scene.actors)
        camera = "static" if scene.camera is None else "shaking"
        rows.append((name, split, camera, "yes" if off_screen else "no", source))
    _write_csv(out / "clips.csv", TWINS_HEADER, rows)


def _instances(scene: Scene) -> list[dict[str, Any]]:
    """Return kind, visibility, sounding seconds and events of every object, instance i of the maps at place i - 1."""
    events = scene.events()
    return [
        {
            "instance": number,
            "kind": actor.kind,
            "visible": actor.visible,
            "sounding": [second for second, on in enumerate(actor.on) if on],
            "events": [
                {"onset": round(event.onset, 3), "offset": round(event.offset, 3)}
                for event in events
                if event.instance == number
            ],
        }
        for number, actor in enumerate(scene.actors, start=1)
    ]


# --------------------------------------------------------------------------------------------------------- Ref-AVS


def _write_ref_avs(out: Path, counts: Counts, seed: int, videos: bool = False) -> None:
    """Write clips with one expression per sounding object; test clips are seen, unseen and null ones in turn."""
    rows = []
    for split, name, index in _clips(counts, seed):
        part = ("test_s", "test_u", "test_n")[index % 3] if split == "test" else split
        scene = sample_scene("v2", split, seed + 700, index, size=SEMANTIC_SIZE).scene
        vid = f"{name}_0_{scene.seconds * 1000}"
        folder = f"null_c-{vid}" if part == "test_n" else vid
        frames = list(scene_frames(scene))
        for k, (image, _) in enumerate(frames):
            _save(out / "media" / folder / "frames" / f"{k}.jpg", image)
        write_wav(_parent(out / "media" / folder / "audio.wav"), scene.soundtrack())
        kinds = ["null"] if part == "test_n" else list(dict.fromkeys(kind for _, masks in frames for kind in masks))
        for fid, kind in enumerate(kinds):
            for k, (_, masks) in enumerate(frames):
                shown = {kind: masks[kind]} if kind in masks else {}
                _save(out / "gt_mask" / folder / f"fid_{fid}" / f"{k:05d}.png", _binary(shown, scene.size))
            absent = next(other for other in INDEX if other not in ("background", *_audible(scene)))
            words = f"The {absent if kind == 'null' else kind} that makes a sound."
            rows.append((vid, f"{folder}_{kind}_1", part, fid, words))
    _write_csv(out / "metadata.csv", ("vid", "uid", "split", "fid", "exp"), rows)


# ------------------------------------------------------------------------------------------------------------ AVIS


def _write_avis(out: Path, counts: Counts, seed: int, videos: bool = False, seconds: int | None = None) -> None:
    """Write scenes of twins and musicians: frames, audio, and one YouTube-VIS file per split."""
    categories = [{"id": i, "name": name} for i, name in enumerate(load_benchmark("avis").classes) if i]
    ids = {name: i for i, name in enumerate(load_benchmark("avis").classes)}
    ids["mower"] = ids["lawn_mover"]
    data: dict[str, dict[str, list[Any]]] = {
        split: {"videos": [], "annotations": [], "categories": categories} for split in counts
    }
    for split, name, index in _clips(counts, seed):
        scene = sample_scene("avis", split, seed, index, size=SEMANTIC_SIZE, seconds=seconds).scene
        height, width = scene.size
        files = [f"{name}/{k:05d}.jpg" for k in range(scene.seconds)]
        maps = []
        for k, file in enumerate(files):
            image, owners = scene.picture(k + FRAME_TIME)
            _save(out / split / "JPEGImages" / file, image)
            maps.append(owners)
        write_wav(_parent(out / split / "WAVAudios" / f"{name}.wav"), scene.soundtrack())
        video = {"id": index + 1, "width": width, "height": height, "length": len(files), "file_names": files}
        data[split]["videos"].append(video)
        for number, actor in enumerate(scene.actors, start=1):
            shown = [owners == number if on else None for owners, on in zip(maps, actor.on, strict=True)]
            shown = [None if mask is None or not mask.any() else mask for mask in shown]
            data[split]["annotations"].append(
                {
                    "id": len(data[split]["annotations"]) + 1,
                    "video_id": index + 1,
                    "category_id": ids[actor.kind],
                    "iscrowd": 0,
                    "height": height,
                    "width": width,
                    **_annotated(shown),
                }
            )
    for split, content in data.items():
        (out / f"{split}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------- files


def _clips(counts: Counts, seed: int) -> Iterator[tuple[str, str, int]]:
    """Yield split, name and index of every clip."""
    for split, count in counts.items():
        for index in range(count):
            yield split, synthetic_clip_name(split, seed, index), index


def _binary(masks: Mapping[str, BoolMask], size: tuple[int, int]) -> ImageArray:
    """Return the union of the masks, 0 and 255."""
    union = np.zeros(size, dtype=bool)
    for mask in masks.values():
        union |= mask
    return union.astype(np.uint8) * 255


def _semantic(masks: Mapping[str, BoolMask], size: tuple[int, int]) -> ImageArray:
    labels = np.zeros(size, dtype=np.uint8)
    for kind, mask in masks.items():
        labels[mask] = INDEX[kind]
    return labels


def _save(path: Path, pixels: ImageArray) -> None:
    Image.fromarray(pixels).save(_parent(path), quality=95)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with _parent(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
