"""The settings of `openavs serve`."""

from __future__ import annotations

from dataclasses import dataclass

from openavs.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerConfig:
    """The limits keep visitors from filling the disk or the queue.

    `overrides` are `key=value` changes of the first recipe. `keep_minutes` is how long the files of a visit stay when
    nobody uses them. `max_total_mb` bounds the files of all visitors together; None is ten of the largest uploads.
    """

    pipeline: str = "tiny"
    overrides: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    max_upload_mb: int = 200
    max_total_mb: int | None = None
    max_seconds: float = 60.0
    queue: int = 8
    keep_minutes: float = 60.0
    device: str | None = None
    dtype: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if self.max_total < self.max_upload:
            raise InputError(
                f"--max-total-mb {self.max_total_mb} has no room for an upload of {self.max_upload_mb} MB; raise it, "
                "or lower --max-upload-mb"
            )

    @property
    def max_upload(self) -> int:
        """Bytes (a megabyte is 2^20 of them, as browsers show file sizes)."""
        return self.max_upload_mb << 20

    @property
    def max_total(self) -> int:
        """Bytes of the files of all visitors."""
        return 10 * self.max_upload if self.max_total_mb is None else self.max_total_mb << 20

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        return self.host in LOOPBACK
