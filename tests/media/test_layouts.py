"""Sound in any order of channels is decoded, and the heap stays intact."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.error import FFmpegError

LOSSLESS = (
    ("mov", "pcm_s16le"),
    ("caf", "pcm_s16le"),
    ("aiff", "pcm_s16be"),
    ("wav", "pcm_s16le"),
    ("mka", "flac"),
    ("mov", "alac"),
)
LOSSY = (("mp4", "aac"), ("mka", "libopus"), ("mka", "ac3"))
LAYOUTS = [
    *("mono", "stereo", "2.1", "3.0", "3.0(back)", "3.1", "4.0", "quad", "quad(side)", "4.1", "5.0", "5.0(side)"),
    *("5.1", "5.1(side)", "6.0", "6.0(front)", "hexagonal", "6.1", "6.1(back)", "6.1(front)", "7.0", "7.0(front)"),
    *("7.1", "7.1(wide)", "7.1(wide-side)", "octagonal"),
]
RATE = 48000
LEFT, RIGHT, CENTER, LFE, SIDE_LEFT, SIDE_RIGHT = range(1, 7)  # as a `chan` box names them

READ = """
import json, sys
from pathlib import Path
from openavs.media.audio import read_audio
from openavs.media.clip import probe
for path in sorted(Path(sys.argv[1]).iterdir()):
    info, heard = probe(path), read_audio(path)
    print(json.dumps([path.name, info.audio_channels, round(heard.duration, 2), heard.dbfs]), flush=True)
"""
# glibc checks each block of memory when it is freed and stops the process with a message; elsewhere this has no effect
CHECKED = {
    "LD_PRELOAD": "libc_malloc_debug.so.0",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "MALLOC_CHECK_": "3",
    "PYTHONMALLOC": "malloc",
}


def levels(count: int) -> list[float]:
    """A level for each channel, so that a channel that is left out or counted twice changes the mean."""
    return [0.5 * (channel + 1) / count for channel in range(count)]


def write_sound(path: Path, codec: str, layout: str, seconds: float = 0.15) -> bool:
    """A tone of 440 Hz in each channel, at `levels`; whether the encoder takes this layout."""
    count = av.AudioLayout(layout).nb_channels
    wave = np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)
    samples = np.outer(wave, levels(count)).astype(np.float32)
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=RATE, layout=layout)
            assert isinstance(stream, AudioStream)
            formats = [form.name for form in stream.codec_context.codec.audio_formats or ()]
            form = "s16p" if codec == "alac" else formats[0]
            frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
            for piece in av.AudioResampler(format=form, layout=layout, rate=RATE).resample(frame):
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    except FFmpegError:
        path.unlink(missing_ok=True)
        return False
    return True


def describe_channels(path: Path, labels: list[int]) -> Path:
    """Writes into a mov, caf or aiff file of PCM which position each channel has."""
    data = bytearray(path.read_bytes())
    body = struct.pack(">III", 0, 0, len(labels)) + b"".join(struct.pack(">II3f", n, 0, 0, 0, 0) for n in labels)
    if path.suffix == ".mov":
        at = data.rindex(b"chan") - 4
        old, new = int.from_bytes(data[at : at + 4]), struct.pack(">I4sI", len(body) + 12, b"chan", 0) + body
        for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"sowt"):
            place = data.rindex(name, 0, at) - 4
            data[place : place + 4] = struct.pack(">I", int.from_bytes(data[place : place + 4]) + len(new) - old)
        data[at : at + old] = new
    else:
        name, size, last = {".caf": (b"chan", 8, b"data"), ".aiff": (b"CHAN", 4, b"SSND")}[path.suffix]
        if (at := data.find(name)) >= 0:
            del data[at : at + 4 + size + int.from_bytes(data[at + 4 : at + 4 + size])]
        at = data.index(last)
        data[at:at] = name + len(body).to_bytes(size) + body
        if path.suffix == ".aiff":
            data[4:8] = struct.pack(">I", len(data) - 8)
    path.write_bytes(data)
    return path


def right_left(path: Path, codec: str = "pcm_s16le") -> Path:
    """A stereo file that says that its channels are Right, Left."""
    assert write_sound(path, codec, "stereo")
    return describe_channels(path, [RIGHT, LEFT])


def order_of(path: Path) -> str:
    """FFmpeg's name of the order of a file's channels."""
    with av.open(str(path)) as container:
        context = container.streams.audio[0].codec_context
        layout = context.layout
        context.layout = "stereo"  # so that the table is freed with `layout` alone
        return str(layout.name)


@pytest.mark.faults
def test_sound_of_every_layout_is_decoded_without_heap_damage(tmp_path: Path) -> None:
    exact: dict[str, int] = {}
    lossy: dict[str, int] = {}
    for kinds, names in ((LOSSLESS, exact), (LOSSY, lossy)):
        for suffix, codec in kinds:
            for layout in LAYOUTS:
                path = tmp_path / f"{codec}-{layout}.{suffix}"
                if write_sound(path, codec, layout):
                    names[path.name] = av.AudioLayout(layout).nb_channels
    assert len(exact) + len(lossy) >= 134
    for suffix, codec in LOSSLESS[:3]:
        path = right_left(tmp_path / f"right left.{suffix}", codec)
        assert order_of(path) == "2 channels (FR+FL)"
        exact[path.name] = 2
        path = tmp_path / f"7.1 backwards.{suffix}"
        assert write_sound(path, codec, "7.1")
        describe_channels(path, [8, 7, SIDE_RIGHT, SIDE_LEFT, LFE, CENTER, RIGHT, LEFT])
        exact[path.name] = 8
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)],
        env={**os.environ, **CHECKED},
        capture_output=True,
        text=True,
        check=False,
    )
    heard = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, f"ended by {done.returncode} after {list(heard)[-1:]}: {done.stderr[-500:]}"
    assert set(heard) == {*exact, *lossy}
    for name, (channels, seconds, dbfs) in heard.items():
        assert channels == {**exact, **lossy}[name], name
        assert seconds == pytest.approx(0.15, abs=0.03), name
        right = 20 * math.log10(np.mean(levels(channels)) / math.sqrt(2))
        # a lossy encoder takes the tone out of a channel for low frequencies, which is the loudest of 2.1
        assert (-0.01 if name in exact else -8) < dbfs - right < (0.01 if name in exact else 1), name
