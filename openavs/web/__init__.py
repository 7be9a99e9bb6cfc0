"""The web page of `openavs serve`.

`app` is the only module that imports Gradio; `server` runs it behind a request filter. The modules below them need
neither: `inference` (recipes, models, one clip through the pipeline), `session` and `artifacts` (the files of a
session), `components` (HTML) and `controller` (the actions of the page and of the API).
"""

from __future__ import annotations

from dataclasses import dataclass

from openavs.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerConfig:
    """Options of the web server; the limits protect its disk and its queue.

    Attributes:
        pipeline: the recipe that is selected first, a name or a YAML file.
        overrides: `key=value` changes of that recipe.
        max_upload_mb: size limit of one upload (a megabyte is 2^20 bytes, as in browsers).
        max_total_mb: size limit of the files of all sessions together; None is ten of the largest uploads.
        max_seconds: duration limit of a clip.
        queue: requests that may wait.
        keep_minutes: idle time after which the files of a session are removed.
        reload_seconds: time after which those of a closed page are removed; a reloaded page finds them again.

    Raises:
        InputError: `max_total_mb` is smaller than one upload.
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
    reload_seconds: float = 30.0
    device: str | None = None
    dtype: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if self.max_total < self.max_upload:
            raise InputError(
                f"--max-total-mb {self.max_total_mb} is smaller than one upload of {self.max_upload_mb} MB; raise it, "
                "or lower --max-upload-mb"
            )

    @property
    def max_upload(self) -> int:
        """Size limit of one upload in bytes."""
        return self.max_upload_mb << 20

    @property
    def max_total(self) -> int:
        """Size limit of the files of all sessions in bytes."""
        return 10 * self.max_upload if self.max_total_mb is None else self.max_total_mb << 20

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach the page."""
        return self.host in LOOPBACK
