"""Mutates media files at random and tries what comes of it, for as long as one likes: the corpus's long run.

    python -m tests.media.mutations --seconds 600 --seed 0 --keep FOLDER

Each mutant is opened, decoded and painted in a process of its own under limits (see `attempts`). Those that crash,
hang, take too much memory or are refused in anything but one sentence are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.media.attempts import in_child
from tests.media.corpus_bytes import flat_png
from tests.media.corpus_streams import plain
from tests.media_files import gray, make_media, tone

WORDS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\xff\xff\xff\x7f", b"\0\1\0\0")
SECONDS, MEGABYTES, RESIDENT = 60.0, 3000, 700


def seeds(folder: Path) -> list[Path]:
    """Small files of many containers and codecs."""
    made = [plain(folder / f"a.{suffix}") for suffix in ("mp4", "mkv", "ts", "avi", "mov")]
    made.append(plain(folder / "fragmented.mp4", options={"movflags": "+frag_keyframe+empty_moov"}))
    made.append(plain(folder / "pcm.mov", sound_codec="pcm_s16le"))
    pictures = [gray(i) for i in range(5)]
    others = {"a.webm": ("libvpx", "yuv420p"), "a.mpg": ("mpeg2video", "yuv420p"), "a.flv": ("flv1", "yuv420p")}
    others |= {"a.gif": ("gif", "rgb8"), "v9.webm": ("libvpx-vp9", "yuv420p"), "m.avi": ("mjpeg", "yuvj420p")}
    others |= {"f.mkv": ("ffv1", "yuv420p"), "a.h264": ("libx264", "yuv420p"), "av1.mp4": ("libsvtav1", "yuv420p")}
    for name, (codec, form) in others.items():
        made.append(make_media(folder / name, pictures, fps=25, codec=codec, pix_fmt=form))
    for name, codec in (("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.ogg", "libopus")):
        made.append(make_media(folder / name, sound=tone(1, 48000), rate=48000, sound_codec=codec))
    (folder / "a.png").write_bytes(flat_png(64))
    return [*made, folder / "a.png"]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with one to twenty changes, most of them in its first kilobyte or at its end, where headers are."""
    body = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 5, 20))):
        where = chance.choice((min(1024, len(body)), len(body), -min(4096, len(body))))
        at = chance.randrange(where) if where > 0 else len(body) + chance.randrange(where, 0)
        chance.choice(CHANGES)(body, at, chance)
        if not body:
            return b"\0"
    return bytes(body)


def _flip(body: bytearray, at: int, chance: random.Random) -> None:
    body[at] ^= 1 << chance.randrange(8)


def _word(body: bytearray, at: int, chance: random.Random) -> None:
    body[at : at + 4] = chance.choice(WORDS)


def _number(body: bytearray, at: int, chance: random.Random) -> None:
    size = chance.choice((1, 2, 4, 8))
    body[at : at + size] = chance.randrange(1 << (8 * size)).to_bytes(size, chance.choice(("big", "little")))


def _repeat(body: bytearray, at: int, chance: random.Random) -> None:
    piece = body[at : at + chance.choice((4, 16, 64, 1024))]
    body[at:at] = piece * chance.choice((1, 2, 50))


def _remove(body: bytearray, at: int, chance: random.Random) -> None:
    del body[at : at + chance.choice((1, 4, 16, 1024))]


def _cut(body: bytearray, at: int, chance: random.Random) -> None:
    del body[max(at, 16) :]


CHANGES: tuple[Callable[[bytearray, int, random.Random], None], ...] = (_flip, _flip, _word, _word, _number, _number)
CHANGES += (_repeat, _remove, _cut)


def main() -> None:
    """Runs and prints what became of the mutants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("mutants"))
    given = parser.parse_args()
    chance, counts, worst = random.Random(given.seed), Counter[str](), 0
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [(path, path.read_bytes()) for path in seeds(folder)]
        while time.monotonic() < end:
            seed, data = chance.choice(files)
            mutant = folder / f"mutant{seed.suffix}"
            mutant.write_bytes(mutated(data, chance))
            sound = mutant if seed.suffix in (".wav", ".flac", ".mp3", ".ogg") else None
            line = {"name": seed.name, "path": str(folder / "a.png" if sound else mutant)}
            found = in_child({**line, **({"audio": str(sound)} if sound else {})}, folder, SECONDS, MEGABYTES)
            outcome, cost = found["outcome"], found.get("megabytes", 0)
            counts[outcome] += 1
            worst = max(worst, cost)
            if outcome in ("crash", "hang") or cost > RESIDENT or "\n" in found.get("said", ""):
                given.keep.mkdir(exist_ok=True)
                shutil.copy(mutant, given.keep / f"{sum(counts.values())}-{seed.name}")
                print(json.dumps(found), flush=True)
    print(f"{sum(counts.values())} mutants: {dict(counts)}, at most {worst} MB", flush=True)


if __name__ == "__main__":
    main()
