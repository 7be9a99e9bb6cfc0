"""The child of `sandbox.py`: decodes a file to its end under a limit of memory, and says whether it fits.

FFmpeg's decoders take an allocation that fails for damage, and go on. What counts is therefore how far the address
space grew: no allocation is larger than `MAX_PIECE`, so whoever passes the limit is seen in the room that lies beyond.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from av.error import FFmpegError

from openavs.errors import InputError
from openavs.media.audio import AudioDecoder
from openavs.media.limits import MAX_PIECE, MediaLimits
from openavs.media.probe import open_directly, pick_audio, pick_video, require_video
from openavs.media.video import VideoDecoder, read_packets

log = logging.getLogger(__name__)


def main() -> None:
    """Reads what to try from the input, answers on the output."""
    import resource

    given = json.load(sys.stdin)
    path, limits = Path(given["path"]), MediaLimits(**given["limits"])
    top = _address_space("VmSize") + max(limits.max_memory, 2 * MAX_PIECE)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)  # that this process was given
    top = top if hard == resource.RLIM_INFINITY else min(top, hard)
    resource.setrlimit(resource.RLIMIT_AS, (top, top))
    most = top - MAX_PIECE
    steps = (_sound, _pictures) if given["whole"] else (_look,)
    fits = all(_fits(step(path, limits), most) for step in steps)
    sys.stdout.write(json.dumps({"fits": fits}))


def _fits(decoded: Iterator[None], most: int) -> bool:
    """Whether no step of decoding took the address space over `most`; other faults show when a file is opened."""
    try:
        for _ in decoded:
            if _address_space("VmPeak") > most:
                return False
    except MemoryError:
        return False
    except (InputError, FFmpegError) as problem:
        log.debug("%s", problem)
    return _address_space("VmPeak") <= most


def _look(path: Path, limits: MediaLimits) -> Iterator[None]:
    with open_directly(path, limits):
        yield


def _sound(path: Path, limits: MediaLimits) -> Iterator[None]:
    with open_directly(path, limits) as container:
        stream = pick_audio(container)
        if stream is not None:
            AudioDecoder(stream, path, limits).run(container)
            yield


def _pictures(path: Path, limits: MediaLimits) -> Iterator[None]:
    with open_directly(path, limits) as container:
        if pick_video(container) is not None:
            stream = require_video(container, path, limits)
            decoder = VideoDecoder(stream, path, limits)
            for packet in read_packets(container, [stream], decoder):
                yield from (None for _ in decoder.decode(packet))
                yield  # also where it gave no picture


def _address_space(name: str) -> int:
    """Bytes of address space that this process has, or had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
