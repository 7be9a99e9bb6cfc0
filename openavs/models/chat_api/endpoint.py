"""Address and key of a chat server, validated before anything is sent, and its faults.

A module of its own because recipes are validated without the `openai` package. The key is read from the environment
only; it is part of no recipe, result, log line or error message.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from openavs.errors import InputError, ModelError

OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"

SERVER_BACKENDS = frozenset({"openai", "openai-audio"})
"""Backends that send requests to a server: their option `model` is a name there and no reference."""


@dataclass(frozen=True)
class Endpoint:
    """Base address of a server, its key, and the environment variable of the key (None: no key is sent)."""

    url: str
    variable: str | None = None
    key: str = field(default="", repr=False)

    @property
    def loopback(self) -> bool:
        """True if the server runs on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


def find_endpoint(base_url: str, api_key_env: str | None = None, offline: bool = False) -> Endpoint:
    """Validate the address and read the key.

    Without `api_key_env`, OpenAI's own server gets the key in OPENAI_API_KEY and any other server none, so that a key
    is sent only to the server that it belongs to.

    Raises:
        InputError: the address is not an http(s) base address, or is on another machine while `offline`.
        ModelError: the variable is not set, or its value cannot be a key.
    """
    validate_base_url(base_url, api_key_env)
    url = _normalize(base_url)
    if offline and not Endpoint(url).loopback:
        raise InputError(
            f"the server {url} is not on this machine, and --offline allows no other; start one here (base_url: "
            "http://localhost:8000/v1) or use another backend"
        )
    variable = api_key_env or (OPENAI_KEY if url == OPENAI else None)
    return Endpoint(url, variable, _read_key(variable, url) if variable else "")


def validate_base_url(base_url: object, api_key_env: object) -> None:
    """Reject a key in the place of an address or a variable name, before a recipe is saved anywhere.

    Raises:
        InputError: `base_url` contains more than an address, or `api_key_env` cannot be a variable's name.
    """
    if isinstance(base_url, str):
        _normalize(base_url)
    if isinstance(api_key_env, str) and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env, re.IGNORECASE | re.ASCII):
        raise InputError(
            "the option 'api_key_env' is the name of an environment variable, such as OPENAI_API_KEY, and "
            "never the key itself"
        )


def _normalize(base_url: str) -> str:
    example = "write it like http://localhost:8000/v1"
    try:
        parts = urlsplit(base_url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"the option 'base_url' is not an address ({error}); {example}") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "the option 'base_url' holds more than an address; a key belongs in an environment variable "
            f"that 'api_key_env' names, and the address is written like {parts.scheme}://{host}/v1"
        )
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise InputError(f"the option 'base_url' is not the address of a server: {base_url!r}; {example}")
    return parts.geturl().rstrip("/")


def _read_key(variable: str, url: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ModelError(
            f"the environment variable {variable}, which should hold the key for {url}, is not set; set it, or name "
            "another with the option 'api_key_env'"
        )
    if not (key.isascii() and key.isprintable()):
        raise ModelError(f"the environment variable {variable} holds unprintable text instead of a key; set it again")
    return key


# A model reads these reasons when it is requested to correct its answer, so a change of words can change its answers.
EMPTY = "the answer is empty"
REFUSED = "the model refused to answer"
TOO_LONG = "the question is longer than the model's context"
NO_PICTURES = "the server does not take the picture"


class ParseError(Exception):
    """An unusable answer; `reason` is a short clause such as "the answer is empty".

    `final` means that a repetition would fail, too; `transient` that the cause is temporary, such as a server outage.
    """

    def __init__(self, reason: str, *, final: bool = False, transient: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final, self.transient = reason, final, transient


class TransientError(Exception):
    """A temporary fault; `wait` is the number of seconds that the server requests to wait, None if unspecified."""

    def __init__(self, reason: str, wait: float | None = None, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.retry = reason, wait, retry
