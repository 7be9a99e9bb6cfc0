"""Audio decoding, resampling and writing: float32, in memory when short and on disk when long."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import soxr
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from openavs.errors import InputError
from openavs.media.limits import DEFAULT_LIMITS, DecodeTimeBudget, MediaLimits, check_rate, longest_silence
from openavs.media.probe import is_short, open_media, pick_audio, pick_video, reading, seconds, stream_length
from openavs.structures.types import Waveform
from openavs.utils.fs import atomic_replace
from openavs.utils.text import pluralize

logger = logging.getLogger(__name__)
Samples = npt.NDArray[np.float32]

IN_MEMORY = 5 * 60 * 48000 * 4  # bytes: five minutes at 48 kHz
SLACK = 0.1  # s; smaller gaps between packets are rounding errors of time stamps
LONGEST_GAP = 600.0  # s; a larger gap is damage, not silence, unless the header has such a length
PLANES = 8  # planes of a frame that FFmpeg stores without an extra list
BLOCK = 1 << 18
GENERATED_RATE = 44_100
ROOM_DBFS = -50.0


@dataclass
class AudioBuffer:
    """Collects samples `[n, channels]`; past `IN_MEMORY` bytes in an unlinked temporary file (in TMPDIR)."""

    channels: int = 1
    length: int = 0

    def __post_init__(self) -> None:
        self._file: IO[bytes] = io.BytesIO()

    def write(self, samples: Samples) -> None:
        """Append samples `[n, channels]` or, for one channel, `[n]`."""
        try:
            if isinstance(self._file, io.BytesIO) and self._file.tell() > IN_MEMORY:
                memory, self._file = self._file, tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the samples
                self._file.write(memory.getbuffer())
            self._file.write(np.ascontiguousarray(samples, dtype=np.float32).tobytes())
        except OSError as error:
            where = tempfile.gettempdir()
            raise InputError(f"the audio does not fit in {where}; free space there or set TMPDIR") from error
        self.length += len(samples)

    def pad(self, count: int) -> None:
        """Append silence; in a file it is a hole."""
        while count and isinstance(self._file, io.BytesIO):
            self.write(np.zeros((min(BLOCK, count), self.channels), dtype=np.float32))
            count -= min(BLOCK, count)
        if count:
            self._file.seek(count * self.channels * 4, os.SEEK_CUR)
            self.length += count

    def trim(self, count: int) -> None:
        """Remove the last samples."""
        self._file.seek(-count * self.channels * 4, os.SEEK_CUR)
        self._file.truncate()
        self.length -= count

    def close(self) -> Samples:
        """Return all samples `[N, channels]`, as a memory map if they are in a file."""
        shape = (self.length, self.channels)
        if isinstance(self._file, io.BytesIO):
            return np.frombuffer(self._file.getbuffer(), dtype=np.float32).reshape(shape)
        self._file.truncate(self.length * self.channels * 4)
        self._file.flush()
        return np.asarray(np.memmap(self._file, dtype=np.float32, mode="r+", shape=shape))


@dataclass
class AudioDecoder:
    """Decodes audio so that sample 0 is at `start` seconds of the file's clock; None: at the start of the audio.

    Earlier audio is cut; a later start and gaps are filled with silence. If time stamps rise more slowly than the
    samples, newer audio replaces the end of the older. Every sample is therefore within `SLACK` of its time stamp,
    except after gaps that are too long to be filled (`jumped` seconds). After time stamps that fall back, the audio
    continues at its end.

    Raises:
        InputError: a rate outside of the limits, NaN or infinite samples, or audio over the limit of duration.
    """

    stream: AudioStream
    path: Path
    limits: MediaLimits
    start: float | None = None
    channels: int = 1
    damaged: int = 0
    jumped: float = 0.0
    overlapped: int = field(default=0, init=False)
    _before: int = field(default=0, init=False)  # samples cut at the start; negative: silence added there
    _newest: float = field(default=float("-inf"), init=False)
    _shift: int = field(default=0, init=False)  # samples; the offset of time stamps that started again
    buffer: AudioBuffer = field(init=False)

    def __post_init__(self) -> None:
        self.rate = self.stream.rate or 48000
        check_rate(self.rate, self.path)
        self._watch = DecodeTimeBudget(self.path)
        with reading(self.path):
            size = self.path.stat().st_size
        self._silence = longest_silence(size) * self.rate  # samples of silence that may still be added
        self.buffer = AudioBuffer(self.channels)
        promised = stream_length(self.stream) or 0.0
        whole = (getattr(self.stream.container, "duration", None) or 0) / 1e6
        self._end = min(max(promised, whole) + LONGEST_GAP, self.limits.max_duration)

    def run(self, container: InputContainer) -> None:
        """Decode to the end of the file; damaged packets are skipped and counted."""
        try:
            for packet in self._watch.timed(container.demux(self.stream)):
                try:
                    with self._watch:
                        for frame in self.stream.decode(packet):
                            self._add(frame)
                except FFmpegError:
                    self.damaged += 1
        except FFmpegError:
            self.damaged += 1

    def _add(self, frame: AudioFrame) -> None:
        samples = frame_samples(frame, self.channels)
        if not np.isfinite(samples).all():
            raise InputError(f"the sound of {self.path} has NaN or infinite samples; repair or re-encode its track")
        if frame.sample_rate != self.rate:  # changed within the stream
            check_rate(frame.sample_rate, self.path)
            samples = np.asarray(soxr.resample(samples, frame.sample_rate, self.rate), dtype=np.float32)
        skipped = min(self._align(frame), len(samples))
        self._before += skipped
        samples = samples[skipped:]
        if (self.buffer.length + len(samples)) / self.rate > self.limits.max_duration:
            raise InputError(
                f"the sound of {self.path} is longer than the limit of {self.limits.max_duration:g} s; "
                "cut it or raise Limits.max_duration"
            )
        self.buffer.write(np.clip(samples, -1.0, 1.0))

    def _align(self, frame: AudioFrame) -> int:
        """Pad up to the frame's time; return the number of its samples that precede the start."""
        time = seconds(frame.pts, frame.time_base)
        if time is None:
            return 0
        if self.start is None:
            self.start = time
        at = round((time - self.start) * self.rate)
        if abs(at + self._shift - self.buffer.length) < abs(at - self.buffer.length):
            at += self._shift
        gap = at - self.buffer.length
        slack = SLACK * self.rate if self.buffer.length else 0
        rises, self._newest = time > self._newest, time
        if gap < -slack and self.buffer.length:
            if rises:
                count = min(-gap, self.buffer.length)
                self.buffer.trim(count)
                self.overlapped += count
            else:
                self._shift = self.buffer.length - round((time - self.start) * self.rate)
        elif gap > slack and at / self.rate <= self._end and gap <= self._silence:
            self._before -= 0 if self.buffer.length else gap
            self.buffer.pad(gap)
            self._silence -= gap
        elif gap > slack:
            self.jumped = gap / self.rate
        return -at if at < 0 and not self.buffer.length else 0

    @property
    def end(self) -> float:
        """Seconds from the start of the stream to the end of the decoded audio."""
        return (self.buffer.length + self._before) / self.rate

    def samples(self) -> Samples:
        """Return the decoded samples `[N, channels]`."""
        return self.buffer.close()


def frame_samples(frame: AudioFrame, channels: int) -> Samples:
    """Return a frame's samples as float32 `[n, channels]` in [-1, 1]: the mean of its channels, or both of two."""
    count = frame.layout.nb_channels
    if frame.format.is_planar and count >= PLANES:
        frame = _convert(frame, frame.format.packed.name)
    if frame.format.name in ("s64", "s64p"):  # not supported by PyAV's NumPy conversion
        frame = _convert(frame, "dbl")
    raw: npt.NDArray[Any] = frame.to_ndarray()
    table = raw.T if frame.format.is_planar else raw.reshape(-1, count)
    if table.dtype == np.uint8:
        table = (table.astype(np.float32) - 128.0) / 128.0
    elif table.dtype.kind == "i":
        table = (table / float(1 << (8 * table.dtype.itemsize - 1))).astype(np.float32)
    if channels == count:
        return np.asarray(table, dtype=np.float32)
    mean = table.mean(axis=1, dtype=np.float32, keepdims=True)
    return np.repeat(mean, channels, axis=1)


def _convert(frame: AudioFrame, form: str) -> AudioFrame:
    """Convert a frame to an interleaved format: PyAV reads past the end of a list of eight planes or more."""
    return AudioResampler(format=form, layout=frame.layout, rate=frame.sample_rate).resample(frame)[0]


def read_audio(path: str | Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> Waveform | None:
    """Decode the audio of a file to mono at its own rate; None for a video without an audio track.

    In a video, sample 0 is at the first frame. Long audio is a memory map of a temporary file.

    Raises:
        InputError: not a readable media file, or over the limits.
    """
    waveform, _ = read_audio_track(Path(path), limits)
    return waveform


def read_audio_track(
    path: Path, limits: MediaLimits, start: float | None = None
) -> tuple[Waveform | None, tuple[str, ...]]:
    """Decode like `read_audio` and also return sentences about faults of the track; `start` as in `AudioDecoder`."""
    with open_media(path, limits) as container:
        stream = pick_audio(container)
        if stream is None:
            return None, ()
        length = stream_length(stream) or 0.0
        if length > limits.max_duration:
            raise InputError(
                f"{path} lasts {length:.0f} s, over the limit of {limits.max_duration:g} s; "
                "cut it or raise Limits.max_duration"
            )
        video = pick_video(container)
        if start is None and video is not None:
            start = seconds(video.start_time, video.time_base)
        for other in container.streams:  # skips the video's bytes, where container and PyAV (18) allow it
            if other.index != stream.index and hasattr(other, "discard"):
                other.discard = type(other.discard).all
        decoder = AudioDecoder(stream, path, limits, start)
        decoder.run(container)
        if not decoder.buffer.length:
            return None, (f"the sound track of {path.name} could not be decoded",)
        waveform = Waveform(decoder.samples()[:, 0], decoder.rate)
        return waveform, _notes(path, length, decoder)


def resample(waveform: Waveform, rate: int) -> Waveform:
    """Resample to another rate in Hz with soxr's high quality setting, in blocks."""
    if rate == waveform.rate:
        return waveform
    if rate <= 0:
        raise InputError(f"a sample rate is positive, not {rate}")
    return Waveform(resample_samples(waveform.samples[:, None], waveform.rate, rate)[:, 0], rate)


def resample_samples(samples: Samples, old: int, new: int) -> Samples:
    """Resample `[N, channels]` to another rate in Hz; the result is a memory map if it is long."""
    stream = soxr.ResampleStream(old, new, samples.shape[1], dtype="float32")
    buffer = AudioBuffer(samples.shape[1])
    for start in range(0, len(samples), BLOCK):
        part = stream.resample_chunk(samples[start : start + BLOCK], last=start + BLOCK >= len(samples))
        buffer.write(np.clip(part, -1.0, 1.0))  # the filter overshoots at full scale
    return buffer.close()


def replacement_sound(name: str, seconds: float) -> Waveform:
    """Return a generated sound at 44.1 kHz that shows nothing in the picture.

    Args:
        name: `silence` (digital zeros), `noise:SEED` (white, uniform in [-1, 1)) or `room:SEED` (pink noise at -50
            dBFS, the level of a quiet room in a recording). Equal seeds give equal sounds.
        seconds: the length.

    Raises:
        InputError: an unknown name.
    """
    kind, _, seed = name.partition(":")
    count = max(1, round(seconds * GENERATED_RATE))
    if name == "silence":
        return Waveform(np.zeros(count, dtype=np.float32), GENERATED_RATE)
    if kind not in ("noise", "room") or not (seed.isascii() and seed.isdigit()):
        raise InputError(f"there is no generated sound {name!r:.40}; there are silence, noise:SEED and room:SEED")
    samples = np.random.default_rng(int(seed)).uniform(-1.0, 1.0, count)
    if kind == "room":
        spectrum = np.fft.rfft(samples)
        spectrum[0] = 0.0
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))  # power falls with 1 / f
        samples = np.fft.irfft(spectrum, count)
        samples *= 10 ** (ROOM_DBFS / 20) / np.sqrt(np.mean(np.square(samples)))
    return Waveform(samples.astype(np.float32), GENERATED_RATE)


def write_wav(path: str | Path, waveform: Waveform) -> None:
    """Write 16-bit mono PCM at the waveform's rate, atomically."""
    with atomic_replace(Path(path)) as temporary, temporary.open("wb") as file:
        _write_pcm(file, waveform)


def encode_wav(waveform: Waveform) -> bytes:
    """Return a WAV file of 16-bit mono PCM at the waveform's rate."""
    buffer = io.BytesIO()
    _write_pcm(buffer, waveform)
    return buffer.getvalue()


def _write_pcm(target: IO[bytes], waveform: Waveform) -> None:
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(waveform.rate)
        for start in range(0, len(waveform.samples), BLOCK):
            block = np.clip(waveform.samples[start : start + BLOCK], -1.0, 1.0)
            file.writeframes(np.round(block * 32767.0).astype("<i2").tobytes())


def _notes(path: Path, promised: float, decoder: AudioDecoder) -> tuple[str, ...]:
    notes, sound = [], f"the sound of {path.name}"
    if decoder.overlapped:
        lost = decoder.overlapped / decoder.rate
        notes.append(
            f"the time stamps of {sound} overlap by {lost:.2f} s in all, which are left out to keep the rest in sync"
        )
    if decoder.jumped:
        notes.append(f"{sound} jumps ahead by {decoder.jumped:.0f} s, which are left out")
    elif is_short(decoder.end, promised):
        ends = f"ends at {decoder.end:.2f} s of {promised:.2f} s"
        notes.append(f"{sound} {ends}; the file is truncated or damaged")
    elif decoder.damaged:
        notes.append(f"{pluralize(decoder.damaged, 'packet')} of {sound} damaged and skipped")
    return tuple(notes)
