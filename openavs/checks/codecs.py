"""What PyAV can read and write: asked of FFmpeg itself, for PyAV may be built against any."""

from __future__ import annotations

from typing import Any, Literal

from openavs.checks.finding import CheckResult

_FIX = "install the wheel, which brings its own FFmpeg: pip install --force-reinstall --only-binary :all: av"

# Name -> what it is for; those that everything needs stand first.
NEEDED_READ = {"h264": "video", "aac": "sound"}
READ = {
    **NEEDED_READ,
    **dict.fromkeys(("hevc", "vp8", "vp9", "av1", "mpeg4"), "video"),
    **dict.fromkeys(("opus", "mp3", "vorbis", "flac", "pcm_s16le"), "sound"),
}
NEEDED_WRITE = {"libx264": "overlay videos", "aac": "their sound"}
WRITE = {
    **NEEDED_WRITE,
    "libvpx-vp9": "WebM with transparency",
    "libopus": "its sound",
    "prores_ks": "MOV with transparency",
}


def codecs() -> CheckResult:
    """Which of the codecs that openavs reads and writes are there."""
    try:
        import av
    except (ImportError, OSError) as problem:
        line = (str(problem).splitlines() or [type(problem).__name__])[0]
        return CheckResult("codecs", "problem", f"PyAV cannot be imported ({line}).", _FIX)
    reads = {name: has_codec(name, "r") for name in READ}
    writes = {name: has_codec(name, "w") for name in WRITE}
    return check_codecs(str(av.__version__), str(av.ffmpeg_version_info), reads, writes)


def has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    """Whether FFmpeg can decode (`r`) or encode (`w`) it."""
    from av.codec import Codec

    try:
        Codec(name, mode)
    except ValueError:  # av's UnknownCodecError is one
        return False
    return True


def check_codecs(pyav: str, ffmpeg: str, reads: dict[str, bool], writes: dict[str, bool]) -> CheckResult:
    """The sentence: what everything needs is a problem when it lacks, the rest a warning."""
    facts: dict[str, Any] = {"pyav": pyav, "ffmpeg": ffmpeg, "decode": reads, "encode": writes}
    base = f"PyAV {pyav} with FFmpeg {ffmpeg}"
    lacking = [f"{name} (to read {READ[name]})" for name, there in reads.items() if not there]
    lacking += [f"{name} (to write {WRITE[name]})" for name, there in writes.items() if not there]
    if not lacking:
        return CheckResult(
            "codecs", "ok", f"{base} reads {', '.join(reads)} and writes {', '.join(writes)}.", facts=facts
        )
    needed = all(reads[name] for name in NEEDED_READ) and all(writes[name] for name in NEEDED_WRITE)
    return CheckResult("codecs", "warning" if needed else "problem", f"{base} lacks {', '.join(lacking)}.", _FIX, facts)
