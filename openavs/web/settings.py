"""What `openavs serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """The limits keep a visitor from filling the disk or the queue.

    `keep_minutes` is how long the files of a visit stay when nobody uses them.
    """

    pipeline: str = "tiny"
    host: str = "127.0.0.1"
    port: int = 7860
    max_upload_mb: int = 200
    max_seconds: float = 60.0
    queue: int = 8
    keep_minutes: float = 60.0
    device: str | None = None
    dtype: str | None = None
    offline: bool = False

    @property
    def max_upload(self) -> int:
        """Bytes (a megabyte is 2^20 of them, as browsers show file sizes)."""
        return self.max_upload_mb << 20

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        return self.host in LOOPBACK
