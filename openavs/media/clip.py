"""Opening and probing of videos, images and folders of images as clips."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
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
from openavs.structures.types import Clip, DenseFrameSource, Frame, FrameSource, Waveform
from openavs.utils.fs import refuse_address


def probe(path: str | Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> MediaInfo:
    """Return the facts about a video, audio file, image or folder of images; at most one frame is decoded."""
    refuse_address(path)
    path = Path(path)
    if os.path.isdir(path):
        paths = list_images(path)
        return MediaInfo(str(path), "images", "folder", 0.0, common_size(paths, limits), frames=len(paths))
    if is_image(path):
        return MediaInfo(str(path), "image", path.suffix[1:].lower(), 0.0, image_size(path, limits), frames=1)
    return _probe_file(path, limits)[0]


def open_clip(
    path: str | Path,
    *,
    fps: float = 1.0,
    audio: str | Path | None = None,
    id: str | None = None,
    times: tuple[float, ...] = (),
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Clip:
    """Open a video file, a folder of images or one image; only the audio and one frame are decoded.

    Args:
        path: the video, folder or image.
        fps: sampled frames per second; frame i is the one presented at (i + 0.5) / fps. For a folder, its images per
            second. A single image lasts as long as its audio.
        audio: an audio file (or video) in place of the file's own audio; it starts with the first frame.
        id: id of the clip; the file's stem if None.
        times: increasing times of the frames of a video in seconds, in place of those by `fps`.
        limits: limits on the header's values.

    Raises:
        InputError: the input is missing, not media, without frames, or over the limits.
    """
    refuse_address(path)
    path = Path(path)
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps is a positive number of frames per second, not {fps}")
    if os.path.isdir(path) or is_image(path):
        return _open_image_files(path, fps, audio, id, limits)
    info, start, matrix, notes = _probe_file(path, limits)
    if info.size is None:
        raise InputError(f"{path} has sound but no picture; give a video, or an image with separate audio (audio=...)")
    times = times or _plan(path, info.duration, fps, limits)
    frames = VideoFrames(path, start, info.size, matrix, times, fps, audio is None, limits)
    waveform, more = read_audio_track(path, limits, start) if audio is None else _read_beside(audio, limits)
    clip = _clip(path, id, times, fps, info.size, frames, (waveform, notes + more))
    return replace(clip, duration=info.duration, dense_frames=frames.dense)


def open_images(
    paths: Sequence[Path],
    *,
    id: str,
    audio: str | Path,
    fps: float = 1.0,
    labels: tuple[str, ...] = (),
    video: Path | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Clip:
    """Open image files as the frames of a clip, with the audio of a separate file.

    Args:
        paths: the images, in order; they have one size.
        id: id of the clip.
        audio: the audio file.
        fps: images per second.
        labels: labels of the clip, see `Clip`.
        video: the video that the images were taken from. The frames between them are decoded from it, in the images'
            proportions; it is opened when they are.
        limits: limits on the headers' values.

    Raises:
        InputError: an image or the audio is missing or damaged; faults beyond the header are raised when the frame is
            read.
    """
    if not paths:
        raise InputError(f"the clip '{id}' has no images; name at least one")
    sound = _read_beside(audio, limits)
    size = common_size(paths, limits)
    times = tuple((i + 0.5) / fps for i in range(len(paths)))
    frames = ImageFrames(tuple(paths), times, limits, strict=True)
    clip = _clip(paths[0].parent, id, times, fps, size, frames, sound)
    return replace(clip, labels=labels, dense_frames=None if video is None else _dense_beside(video, clip, limits))


def _dense_beside(video: Path, clip: Clip, limits: MediaLimits) -> DenseFrameSource:
    """Return the source of the frames between a clip's images, from the video that they were taken from."""

    def dense(fps: float, longest_side: int) -> Iterator[Frame]:
        info, start, matrix, _ = _probe_file(video, limits)
        if info.size is None:
            raise InputError(f"{video} has no picture; remove it, or give the video that the images were taken from")
        frames = VideoFrames(video, start, clip.size, matrix, clip.times, clip.fps, False, limits)
        yield from frames.dense(fps, longest_side)

    return dense


def planned_times(duration: float, fps: float) -> tuple[float, ...]:
    """Return the times (i + 0.5) / fps within `duration` seconds; at least one."""
    count = max(1, math.ceil(duration * fps - 0.5 - 1e-6))
    return tuple((i + 0.5) / fps for i in range(count))


def _plan(path: Path, duration: float, fps: float, limits: MediaLimits) -> tuple[float, ...]:
    if duration * fps > limits.max_frames:
        raise InputError(
            f"{path} has {duration * fps:.3g} frames at {fps:g} a second, over the limit of {limits.max_frames}; "
            "sample fewer a second, cut it or raise Limits.max_frames"
        )
    return planned_times(duration, fps)


def _open_image_files(path: Path, fps: float, audio: str | Path | None, id: str | None, limits: MediaLimits) -> Clip:
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
    """Read the audio of a separate file, which must have some."""
    waveform, notes = read_audio_track(Path(audio), limits)
    if waveform is None:
        raise InputError(f"{audio} has no audio that can be decoded; give an audio file such as wav, flac, mp3 or ogg")
    return waveform, notes


def _probe_file(path: Path, limits: MediaLimits) -> tuple[MediaInfo, float, Matrix, tuple[str, ...]]:
    """Return a media file's info, its first frame's time and display matrix, and warnings."""
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
            raise InputError(f"no frame of {path} can be decoded; it is damaged, empty or over the limit of pixels")
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
    """Return a sentence about time stamps that jump, for a container without a header to confirm the length."""
    if form not in HEADLESS or scan.step <= JUMP:
        return ()
    return (
        f"the time stamps of {path.name} jump ahead by {scan.step:.0f} s at {scan.place:.2f} s; the last frame "
        "before is held and the audio is silent for that long",
    )
