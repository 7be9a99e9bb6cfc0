"""Disk space for visitors: bounds the files of all of them together and removes what broken uploads leave."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openavs.web.guard import Message, Receive, RequestRefused

STALLED = 60.0  # s without a byte after which an upload is ended


class DiskQuota:
    """Admits uploads while the files of all visitors fit into `limit` bytes.

    Args:
        uploads: Gradio's folder. Unfinished uploads are files in it, finished ones are in folders below it.
        visits: the folder of the files of the visits, which hold links to their uploads.
        limit: bytes of all these files together, and of the uploads on their way.
        broken: the exception upon which the parser of uploads closes and removes its files.
    """

    def __init__(self, uploads: Path, visits: Path, limit: int, broken: type[Exception]) -> None:
        self._uploads, self._visits, self._limit, self._broken = uploads, visits, limit, broken
        self._coming: list[int] = []

    def used(self) -> int:
        """Bytes on disk; a file with several links counts once."""
        sizes = {}
        for top in (self._uploads, self._visits):
            for folder, _, names in os.walk(top):
                for name in names:
                    with suppress(FileNotFoundError):  # a visit may end meanwhile
                        seen = os.lstat(os.path.join(folder, name))
                        sizes[seen.st_dev, seen.st_ino] = seen.st_size
        return sum(sizes.values())

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Holds space for an upload of `size` bytes and removes its leftovers; for the thread of the server only.

        Raises:
            Refused: there is no space left.
        """
        if self.used() + sum(self._coming) + size > self._limit:
            raise RequestRefused(
                507,
                f"the files of all visitors take the {self._limit >> 20} MB that this server has for them; try again "
                "later",
            )
        self._coming.append(size)
        try:
            yield
        finally:
            self._coming.remove(size)
            if not self._coming:
                for path in self._uploads.iterdir():
                    if path.is_file():
                        path.unlink(missing_ok=True)

    def whole(self, receive: Receive) -> Receive:
        """The messages of an upload; one that ends early or stalls raises `broken`."""
        ended = False

        async def received() -> Message:
            nonlocal ended
            if ended:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), STALLED)
            except TimeoutError:
                raise self._broken(f"the upload stopped for {STALLED:g} s; try again") from None
            if message["type"] == "http.disconnect":
                raise self._broken("the upload ended early")
            ended = not message.get("more_body", False)
            return message

        return received
