"""Object stores through fsspec: `s3://`, `gs://`, `memory://` and others, with bounded retries and create-if-absent.

An object is written whole or not at all, and a listing shows what was written before it: both hold of S3, of Google
Cloud Storage and of Azure. The packages `s3fs` and `gcsfs` are imported when a store is opened.
"""

from __future__ import annotations

import inspect
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from openavs.errors import InputError, StoreError
from openavs.utils.optional_deps import EXTRAS

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRIES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt of a request that failed."""
THREADS = 16
"""Requests at a time, where many objects are read."""
BLOCK = 8 << 20
"""Bytes of an object that are in memory while it is copied to a file."""
_EXTRA_OF = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_ONCE: dict[str, Any] = {"config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 10}}
_OWN = {"s3": _ONCE, "s3a": _ONCE}  # the retries here are the only ones: those of three layers would take minutes
_FILES = frozenset(("file", "local", "http", "https", "ftp", "sftp", "data"))


def is_object_url(text: str) -> bool:
    """Return whether a text is the address of an object store, such as `s3://bucket/clips`."""
    found = re.match(r"([a-z][a-z0-9+.-]+)://", text)
    return found is not None and found[1] not in _FILES


def is_object_name(name: str) -> bool:
    """Return whether a name may also be the name of a file below a folder."""
    return not name.startswith("/") and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


class ObjectStore:
    """The objects below an address, by name.

    Every method but `create` may be repeated without harm, and is after a fault of the network or the store.

    Raises:
        InputError: the address is malformed, its package is not installed, or access is refused.
        StoreError: the store cannot be reached, also after the retries.
    """

    def __init__(self, url: str) -> None:
        if not url.partition("://")[2].strip("/"):
            raise InputError(f"{url} names no bucket; write it as {url.partition(':')[0]}://BUCKET/FOLDER")
        self.url = url.rstrip("/")
        self._fs, self._root = _connect(self.url)
        self._failed = False

    def get(self, name: str) -> bytes:
        """Return the content of an object; FileNotFoundError if there is none."""
        content: bytes = self._try(name, lambda: self._fs.cat_file(self._path(name)))
        return content

    def get_all(self, names: Collection[str]) -> dict[str, bytes]:
        """Return the contents of objects, read some at a time; those that do not exist are left out."""

        def read(name: str) -> bytes | None:
            try:
                return self.get(name)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(THREADS) as pool:
            found = zip(names, pool.map(read, names), strict=True)
            return {name: content for name, content in found if content is not None}

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of an object from an offset; fewer at its end."""
        content: bytes = self._try(name, lambda: self._fs.cat_file(self._path(name), start=offset, end=offset + size))
        return content

    def download(self, name: str, to: Path, offset: int = 0, size: int | None = None) -> None:
        """Copy an object, or a part of it, to a file.

        Raises:
            FileNotFoundError: there is no such object.
            InputError: it ends before the part does.
        """
        before = self._info(name)
        size = int(before["size"]) if size is None else size
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("wb") as file:
            while (done := file.tell()) < size:
                block = self.read(name, offset + done, min(BLOCK, size - done))
                if not block:
                    raise InputError(f"{self.url}/{name} is cut short: it ends at byte {offset + done}")
                file.write(block)
        if size > BLOCK and self._info(name) != before:
            raise StoreError(f"{self.url}/{name} was replaced while it was read; run the same command again")

    def open(self, name: str) -> IO[bytes]:
        """Open an object for reading at any place, some hundred kilobytes at a time."""
        file: IO[bytes] = self._try(name, lambda: self._fs.open(self._path(name), "rb", block_size=1 << 18))
        return file

    def put(self, items: Mapping[str, bytes]) -> None:
        """Write objects, some at a time; those of the same names are replaced."""
        paths = {self._path(name): content for name, content in items.items()}
        if paths:
            self._write(next(iter(items)), lambda: self._fs.pipe(paths))

    def upload(self, path: Path, name: str) -> None:
        """Write a file of any size as an object."""
        self._write(name, lambda: self._fs.put_file(str(path), self._path(name)))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless one of its name exists; returns whether this call wrote it. `content` is unique."""
        tried = 0

        def attempt() -> None:
            nonlocal tried
            tried += 1
            self._fs.pipe_file(self._path(name), content, mode="create")

        try:
            self._try(name, attempt)
        except FileExistsError:
            return tried > 1 and self.get(name) == content  # the answer to an earlier attempt was lost
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, some at a time; those that do not exist are ignored."""

        def remove(name: str) -> None:
            with suppress(FileNotFoundError):
                self._try(name, lambda: self._fs.rm_file(self._path(name)))

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(remove, names))

    def size(self, name: str) -> int:
        """Return the size of an object in bytes; FileNotFoundError if there is none."""
        return int(self._info(name)["size"])

    def find(self, below: str = "") -> dict[str, dict[str, Any]]:
        """Return what the store says of each object below a name, at any depth, by name."""
        found = self._try(below, lambda: self._fs.find(self._path(below), detail=True))
        start = len(self._root) + 1
        names = {path[start:]: info for path, info in found.items() if path.startswith(f"{self._root}/")}
        return {name: info for name, info in sorted(names.items()) if not name.endswith("/")}

    def check_create(self) -> None:
        """Write, and remove, an object below the address.

        Raises:
            InputError: nothing can be written there, or the store does not refuse to create an object a second time.
        """
        name = f".openavs-{secrets.token_hex(8)}"
        scheme = self.url.partition("://")[0]
        own = getattr(type(self._fs), "_pipe_file", type(self._fs).pipe_file)  # the base looks first, and then writes
        lacking = InputError(
            f"the store of {self.url} has no create-if-absent that openavs can use, so that two jobs could not share it"
            f" ({scheme}); label into a folder and copy it there"
        )
        if own.__module__ in ("fsspec.spec", "fsspec.asyn") or "mode" not in inspect.signature(own).parameters:
            raise lacking
        try:
            first, second = (self.create(name, content) for content in (b"1", b"2"))
        except FileNotFoundError as error:
            raise InputError(f"{self.url} cannot be written (there is no such bucket); make it first") from error
        self.remove([name])
        if not first or second:
            raise lacking

    def tops(self) -> set[str]:
        """Return the first parts of the names of all objects below the address."""
        try:
            found = self._try("", lambda: self._fs.ls(self._root, detail=False))
        except FileNotFoundError:
            return set()
        return {path.rstrip("/").rpartition("/")[2] for path in found}

    def _info(self, name: str) -> dict[str, Any]:
        info: dict[str, Any] = self._try(name, lambda: self._fs.info(self._path(name)))
        if info["type"] != "file":
            raise FileNotFoundError(f"{self.url}/{name}")
        return info

    def _write(self, name: str, request: Callable[[], object]) -> None:
        try:
            self._try(name, request)
        except FileNotFoundError as error:
            raise StoreError(f"{self.url} cannot be written (its bucket does not exist)") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _try(self, name: str, request: Callable[[], T]) -> T:
        """Send a request; repeat it after a fault that may pass."""
        place = f"{self.url}/{name}" if name else self.url
        for wait in (*RETRIES, None):
            try:
                return request()
            except (FileNotFoundError, FileExistsError, IsADirectoryError):
                raise
            except PermissionError as error:
                raise InputError(f"{place} is refused by the store ({_line(error)}); check the credentials") from error
            except Exception as error:  # each package has errors of its own
                if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"):
                    raise InputError(f"there are no credentials for {place} ({_line(error)})") from error
                if wait is None or self._failed:
                    self._failed = True  # what follows, such as the last report, is not to wait as long again
                    raise StoreError(
                        f"{place} could not be reached in {len(RETRIES) + 1} attempts ({_line(error)}); finished clips "
                        "are kept, run the same command again"
                    ) from error
                logger.info("%s: %s; again in %g s", place, _line(error), wait)
                time.sleep(wait)
        raise AssertionError


def _connect(url: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it."""
    scheme = url.partition("://")[0]
    if "::" in url:  # a chain may end at a file of this machine
        raise InputError(f"{url} is a chain of addresses; give the address of one object store, such as s3://BUCKET")
    try:
        from fsspec.core import url_to_fs

        # Listings show what others wrote meanwhile: none may come from a cache.
        options = {"use_listings_cache": False, "skip_instance_cache": scheme != "memory"}
        fs, root = url_to_fs(url, **options, **_OWN.get(scheme, {}))
        fs.retries = 1
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it logs faults that the request raises, too
    except ImportError as error:
        extra = _EXTRA_OF.get(scheme)
        how = EXTRAS[extra].command if extra else _line(error)
        raise InputError(f"{url} needs a package that is not installed: {how}") from error
    except ValueError as error:
        raise InputError(f"{url} is not an address that fsspec knows ({_line(error)})") from error
    except Exception as error:  # each package has errors of its own
        raise InputError(f"{url} cannot be opened ({_line(error)})") from error
    return fs, root.rstrip("/")


def _line(error: BaseException) -> str:
    """Return an error of a library in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
