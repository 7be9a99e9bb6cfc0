"""Opens whatever a user calls a video as a `Clip`, and describes it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openavs.errors import InputError
from openavs.media.audio import read_audio_track
from openavs.media.images import ImageFrames, common_size, image_size, is_image, list_images
from openavs.media.limits import DEFAULT_LIMITS, MediaLimits
from openavs.media.probe import (
    HEADLESS,
    JUMP,
    UPRIGHT,
    Matrix,
    MediaInfo,
    Scan,
    codec_name,
    display_matrix,
    open_media,
    pick_audio,
    pick_video,
    require_video,
    scan_duration,
    stream_length,
    upright_size,
    video_duration,
)
from openavs.media.video import VideoDecoder, VideoFrames, decode_video
from openavs.structures.types import Clip, FrameSource, Waveform
from openavs.utils.fs import refuse_address


def probe(path: str | Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> MediaInfo:
    """Says what a video, sound, picture or folder of pictures holds; at most one picture is decoded."""
    refuse_address(path)
    path = Path(path)
    if os.path.isdir(path):
        paths = list_images(path)
        return MediaInfo(str(path), "pictures", "folder", 0.0, common_size(paths, limits), frames=len(paths))
    if is_image(path):
        return MediaInfo(str(path), "picture", path.suffix[1:].lower(), 0.0, image_size(path, limits), frames=1)
    return _probe_file(path, limits)[0]


def open_clip(
    path: str | Path,
    *,
    fps: float = 1.0,
    audio: str | Path | None = None,
    id: str | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Clip:
    """Opens a video file, a folder of pictures or one picture; nothing but the sound and one picture is decoded.

    Args:
        path: The video, folder or picture.
        fps: Frames to sample per second; frame i is the picture on show at (i + 0.5) / fps. For a folder, the
            pictures per second it holds. A single picture stands for as long as its sound lasts.
        audio: A sound file (or video) to take the sound from; it begins with the first picture.
        id: Name of the clip; the file's own name without its ending if None.
        limits: What is refused from the header.

    Raises:
        InputError: the input is missing, no media, without pictures, over the limits.
    """
    refuse_address(path)
    path = Path(path)
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps is a positive number of frames per second, not {fps}")
    if os.path.isdir(path) or is_image(path):
        return _open_pictures(path, fps, audio, id, limits)
    info, start, matrix, notes = _probe_file(path, limits)
    if info.size is None:
        raise InputError(f"{path} has sound but no picture; give a video, or a picture with the sound beside it")
    times = _plan(path, info.duration, fps, limits)
    frames = VideoFrames(path, start, info.size, matrix, times, fps, audio is None, limits)
    waveform, more = read_audio_track(path, limits, start) if audio is None else _read_beside(audio, limits)
    clip = _clip(path, id, times, fps, info.size, frames, (waveform, notes + more))
    return replace(clip, duration=info.duration)


def open_images(
    paths: Sequence[Path],
    *,
    id: str,
    audio: str | Path,
    fps: float = 1.0,
    labels: tuple[str, ...] = (),
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Clip:
    """Opens picture files, in the order given, as the frames of a clip, `fps` a second; its sound is in a file beside.

    Each of them was named, so none may be absent or damaged: what can be seen from the headers raises InputError here,
    the rest when the frame is read. `labels` are handed on (see `Clip`).
    """
    if not paths:
        raise InputError(f"the clip '{id}' has no pictures; name at least one")
    sound = _read_beside(audio, limits)
    size = common_size(paths, limits)
    times = tuple((i + 0.5) / fps for i in range(len(paths)))
    frames = ImageFrames(tuple(paths), times, limits, strict=True)
    return replace(_clip(paths[0].parent, id, times, fps, size, frames, sound), labels=labels)


def planned_times(duration: float, fps: float) -> tuple[float, ...]:
    """The times (i + 0.5) / fps that lie within `duration` seconds; at least one."""
    count = max(1, math.ceil(duration * fps - 0.5 - 1e-6))
    return tuple((i + 0.5) / fps for i in range(count))


def _plan(path: Path, duration: float, fps: float, limits: MediaLimits) -> tuple[float, ...]:
    if duration * fps > limits.max_frames:
        raise InputError(
            f"{path} has {duration * fps:.3g} frames at {fps:g} a second, over the limit of {limits.max_frames}; "
            "sample fewer a second, cut it or raise Limits.max_frames"
        )
    return planned_times(duration, fps)


def _open_pictures(path: Path, fps: float, audio: str | Path | None, id: str | None, limits: MediaLimits) -> Clip:
    sound = _read_beside(audio, limits) if audio is not None else (None, ())
    if os.path.isdir(path):
        paths = tuple(list_images(path))
        size = common_size(paths, limits)
    else:
        size = image_size(path, limits)
        paths = (path,) * len(_plan(path, sound[0].duration if sound[0] else 0.0, fps, limits))
    times = tuple((i + 0.5) / fps for i in range(len(paths)))
    return _clip(path, id, times, fps, size, ImageFrames(paths, times, limits), sound)


def _clip(
    path: Path,
    id: str | None,
    times: tuple[float, ...],
    fps: float,
    size: tuple[int, int],
    frames: FrameSource,
    sound: tuple[Waveform | None, tuple[str, ...]],
) -> Clip:
    name = path.absolute().name if os.path.isdir(path) else path.stem
    return Clip(id or name or "clip", times, fps, size, frames, sound[0], str(path), sound[1])


def _read_beside(audio: str | Path, limits: MediaLimits) -> tuple[Waveform | None, tuple[str, ...]]:
    """The sound of a separate file, which must have some."""
    waveform, notes = read_audio_track(Path(audio), limits)
    if waveform is None:
        raise InputError(f"{audio} holds no sound that can be decoded; give a sound file such as wav, flac, mp3 or ogg")
    return waveform, notes


def _probe_file(path: Path, limits: MediaLimits) -> tuple[MediaInfo, float, Matrix, tuple[str, ...]]:
    """Describes a media file: info, its first picture's time on the file's clock and display matrix, and warnings."""
    with open_media(path, limits) as container:
        sound = pick_audio(container)
        audio = (codec_name(sound), sound.rate, sound.channels) if sound else (None, None, None)
        if pick_video(container) is None and sound is not None:
            length = stream_length(sound) or (container.duration or 0) / 1e6
            return (
                MediaInfo(str(path), "audio", container.format.name, length, None, None, None, None, *audio),
                0.0,
                UPRIGHT,
                (),
            )
        stream = require_video(container, path, limits)
        rate = float(stream.average_rate) if stream.average_rate else None
        first = next(decode_video(container, stream, VideoDecoder(stream, path, limits)), None)
        if first is None:
            raise InputError(f"no picture of {path} can be decoded; it is damaged, empty or over the limit of pixels")
        matrix = display_matrix(first.frame)
        start, size = first.start, upright_size(first.frame, matrix)
        promised, is_own = video_duration(container, stream, start)
        codec, form = codec_name(stream), container.format.name
        count = (stream.frames or None) if promised is not None else None
    scan = Scan(promised) if promised is not None and is_own else scan_duration(path, limits, start, promised)
    duration = scan.duration
    if duration > limits.max_duration:
        raise InputError(
            f"{path} lasts {duration:.0f} s, over the limit of {limits.max_duration:g} s; "
            "cut it or raise Limits.max_duration"
        )
    info = MediaInfo(str(path), "video", form, duration, size, rate, count, codec, *audio)
    return info, start, matrix, _jump_notes(path, form, scan)


def _jump_notes(path: Path, form: str, scan: Scan) -> tuple[str, ...]:
    """A sentence on time stamps that jump ahead, of a container that has no header to confirm the length."""
    if form not in HEADLESS or scan.step <= JUMP:
        return ()
    return (
        f"the time stamps of {path.name} jump ahead by {scan.step:.0f} s at {scan.place:.2f} s; the last picture "
        "before is held, and sound that jumps with it is silent, for that long",
    )
