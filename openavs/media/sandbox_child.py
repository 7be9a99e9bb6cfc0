"""Child process of `limits.test_decode`: decodes a file to its end under a memory limit and reports whether it fits.

FFmpeg's decoders treat a failed allocation as damage and continue. The test is therefore the growth of the address
space: no allocation is larger than `MAX_ALLOCATION`, and the hard limit is that much above the tested one, so an
allocation over the tested limit succeeds and is visible.
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
from openavs.media.limits import MAX_ALLOCATION, MediaLimits
from openavs.media.probe import open_directly, pick_audio, pick_video, require_video
from openavs.media.video import VideoDecoder, read_packets

logger = logging.getLogger(__name__)


def main() -> None:
    """Read the request from stdin and write the answer to stdout."""
    import resource

    given = json.load(sys.stdin)
    path, limits = Path(given["path"]), MediaLimits(**given["limits"])
    top = _address_space("VmSize") + max(limits.max_memory, 2 * MAX_ALLOCATION)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)  # the limit of this process
    top = top if hard == resource.RLIM_INFINITY else min(top, hard)
    resource.setrlimit(resource.RLIMIT_AS, (top, top))
    most = top - MAX_ALLOCATION
    steps = (_decode_audio, _decode_video) if given["whole"] else (_probe,)
    fits = all(_fits(step(path, limits), most) for step in steps)
    sys.stdout.write(json.dumps({"fits": fits}))


def _fits(decoded: Iterator[None], most: int) -> bool:
    """Return whether the address space stayed below `most`; other faults are reported when the file is opened."""
    try:
        for _ in decoded:
            if _address_space("VmPeak") > most:
                return False
    except MemoryError:
        return False
    except (InputError, FFmpegError) as error:
        logger.debug("%s", error)
    return _address_space("VmPeak") <= most


def _probe(path: Path, limits: MediaLimits) -> Iterator[None]:
    with open_directly(path, limits):
        yield


def _decode_audio(path: Path, limits: MediaLimits) -> Iterator[None]:
    with open_directly(path, limits) as container:
        stream = pick_audio(container)
        if stream is not None:
            AudioDecoder(stream, path, limits).run(container)
            yield


def _decode_video(path: Path, limits: MediaLimits) -> Iterator[None]:
    with open_directly(path, limits) as container:
        if pick_video(container) is not None:
            stream = require_video(container, path, limits)
            decoder = VideoDecoder(stream, path, limits)
            for packet in read_packets(container, [stream], decoder):
                yield from (None for _ in decoder.decode(packet))
                yield  # also for packets without a frame


def _address_space(name: str) -> int:
    """Return the bytes of address space of this process: `VmSize` now, `VmPeak` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
