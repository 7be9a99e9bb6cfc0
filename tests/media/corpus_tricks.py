"""Files that lead elsewhere: playlists, protocols, names that mean something to FFmpeg, pictures that are bombs."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.media.corpus_bytes import flat_png, u32
from tests.media.corpus_streams import Make, plain
from tests.media_files import gray, make_media, tone

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{0}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>"
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 1 RTP/AVP 96\n"


def text(content: str) -> Make:
    """A file of text."""
    return lambda path: path.write_text(content)


def playlists(targets: dict[str, str]) -> dict[str, Make]:
    """Scripts that name other media, each under its own ending and as an mp4; `targets` are what they name."""
    table: dict[str, Make] = {}
    for kind, target in targets.items():
        for suffix in (".mp4", ".mkv", ".wav"):
            table[f"ffconcat_{kind}{suffix}"] = text(f"ffconcat version 1.0\nfile {target}\n")
            table[f"hls_{kind}{suffix}"] = text(HLS.format(target))
        table[f"hls_{kind}.m3u8"] = text(HLS.format(target))
        table[f"concat_{kind}.txt"] = text(f"ffconcat version 1.0\nfile '{target}'\n")
        table[f"dash_{kind}.mpd"] = text(DASH.format(target))
        table[f"playlist_{kind}.m3u"] = text(f"{target}\n")
        table[f"imf_{kind}.xml"] = text(f"<CompositionPlaylist><Id>{target}</Id></CompositionPlaylist>")
    table["session.sdp"] = table["sdp.mp4"] = text(SDP)
    table["lyrics.mp4"] = text("[00:01.00] words of a song\n" * 50)
    table["subtitles.mp4"] = text("1\n00:00:00,000 --> 00:00:02,000\nwords\n")
    table["metadata.mp4"] = text(";FFMETADATA1\ntitle=x\n")
    return table


def reference_mp4(target: str, path: Path) -> None:
    """An mp4 whose video is in another file: its data reference is an alias to `target`."""
    data = plain(path).read_bytes()
    alias = b"alis" + bytes(4) + target.encode()[:200]
    box = u32(len(alias) + 4) + alias
    old = data[data.index(b"dref") - 4 :]
    size = struct.unpack(">I", old[:4])[0]
    new = u32(16 + len(box)) + b"dref" + bytes(4) + u32(1) + box
    grown = len(new) - size
    start = data.index(b"dref") - 4
    data = bytearray(data[:start] + new + data[start + size :])
    for box_name in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = data.rindex(box_name, 0, start + 4 if box_name == b"dinf" else data.index(b"dref")) - 4
        data[place : place + 4] = u32(struct.unpack(">I", data[place : place + 4])[0] + grown)
    path.write_bytes(data)


def addresses(folder: Path, port: int) -> list[str]:
    """Names that FFmpeg takes for a protocol or a pattern, and not for a path."""
    good, web = folder / "good.mp4", f"http://127.0.0.1:{port}/a.mp4"
    return [
        web,
        web.replace("http:", "https:"),
        f"rtmp://127.0.0.1:{port}/a",
        f"tcp://127.0.0.1:{port}",
        f"ftp://127.0.0.1:{port}/a.mp4",
        f"concat:{good}|{good}",
        f"subfile,,start,0,end,0,,:{good}",
        f"file:{good}",
        f"async:{good}",
        f"cache:{good}",
        f"crypto:{good}",
        f"data:video/mp4;base64,{'A' * 40}",
        "pipe:0",
        "fd:0",
        f"{folder}/frame%d.png",
        f"{folder}/frame*.png",
        "x" * 5000,
        "a\0b.mp4",
    ]


NAMES = ("-i.mp4", "-.mp4", "--out=x.mp4", "a:b.mp4", "concat:a|b.mp4", "http:x.mp4", "frame%d.mp4", "50%.mp4")
NAMES += ("a\nb.mp4", "a'b\"c.mp4", "$(id).mp4", "ünï\u202e.mp4", "file:x.mp4", "pipe:0.mp4", "*.mp4", "[a].mp4")


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + u32(zlib.crc32(kind + body))


def png(*chunks: tuple[bytes, bytes], side: int = 8) -> bytes:
    """A PNG of gray pixels with further chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(side * (side + 1)), 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*one) for one in chunks) + rows + chunk(b"IEND", b"")


def saved(form: str, keep: float = 1.0) -> bytes:
    """A picture of random pixels, or the first part of its file."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form)
    data = buffer.getvalue()
    return data[: round(len(data) * keep)]


def flipped_picture(form: str, seed: int) -> bytes:
    """A picture with bits turned over."""
    data = bytearray(saved(form))
    random = np.random.default_rng(seed)
    for place in random.integers(0, len(data), 20):
        data[place] ^= 1 << int(random.integers(8))
    return bytes(data)


def pictures() -> dict[str, Make]:
    """File name -> what writes a picture that is not to be trusted."""
    bombs: dict[str, bytes | Callable[[], bytes]] = {
        "huge.png": partial(flat_png, 16384),
        "header_4e9.png": lambda: png()[:16] + u32(0xFFFFFFFF, 0x7FFFFFFF) + png()[24:],
        "claims_60000.png": lambda: png()[:16] + u32(60_000, 60_000) + png()[24:],
        "zero.png": lambda: png()[:16] + u32(0, 0) + png()[24:],
        "text_bomb.png": lambda: png((b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20), 1))),
        "profile_bomb.png": lambda: png((b"iCCP", b"a\0\0" + zlib.compress(bytes(100 << 20), 1))),
        "many_texts.png": lambda: png(*[(b"tEXt", b"a\0b")] * 50_000),
        "exif_loop.jpg": lambda: saved("JPEG")[:2] + b"\xff\xe1\x00\x20Exif\0\0MM\0*\0\0\0\x08" + bytes(18),
        "long_chunk.png": lambda: png()[:33] + u32(0xFFFFFFF0) + png()[37:],
        "tall.png": lambda: png()[:16] + u32(1, 0x7FFFFFFF) + png()[24:],
        "text.png": b"no picture at all",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "gif.png": partial(saved, "GIF"),
        "tiff.jpg": partial(saved, "TIFF"),
    }
    for form, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp")):
        bombs |= {f"cut{share}.{suffix}": partial(saved, form, share / 100) for share in (5, 25, 50, 75, 95)}
        bombs |= {f"flip{seed}.{suffix}": partial(flipped_picture, form, seed) for seed in range(5)}
    return {name: partial(_write, made) for name, made in bombs.items()}


def _write(made: bytes | Callable[[], bytes], path: Path) -> None:
    path.write_bytes(made if isinstance(made, bytes) else made())


def misnamed() -> dict[str, Make]:
    """Other kinds of files under the name of a video."""

    def as_tar(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            archive.add(plain(path.with_name("inside.mp4")), "../../../b.mp4")

    return {
        "png.mp4": lambda path: path.write_bytes(png()),
        "jpg.mkv": lambda path: path.write_bytes(saved("JPEG")),
        "txt.mp4": text("Only words.\n" * 100),
        "html.mp4": text("<html><video src='http://127.0.0.1/x.mp4'></video></html>"),
        "wav.mp4": lambda path: path.write_bytes(
            make_media(path.with_suffix(".wav"), sound=tone(1), sound_codec="pcm_s16le").read_bytes()
        ),
        "tar.mp4": as_tar,
        "empty.mp4": lambda path: path.write_bytes(b""),
        "mp4.wav": lambda path: path.write_bytes(make_media(path.with_suffix(".mp4"), [gray(0)] * 5).read_bytes()),
        "mp4.png": lambda path: path.write_bytes(plain(path.with_name("p.mp4")).read_bytes()),
    }
