"""Where a chat server is and what key it gets: checked before anything is sent.

The key comes from the environment alone. It stands in no recipe, result, log line or error sentence.
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


@dataclass(frozen=True)
class Endpoint:
    """A server's base address, the variable that its key came from (None: it gets none) and the key."""

    url: str
    variable: str | None = None
    key: str = field(default="", repr=False)

    @property
    def loopback(self) -> bool:
        """Whether the server runs on this machine."""
        return _is_loopback(urlsplit(self.url).hostname or "")


def find_endpoint(base_url: str, api_key_env: str | None = None, offline: bool = False) -> Endpoint:
    """Checks the address and fetches the key.

    Without `api_key_env` OpenAI's own server gets the key in OPENAI_API_KEY and any other server none, so that a key
    goes nowhere its owner did not send it.

    Raises:
        InputError: the address is no http(s) base address, or lies beyond this machine while `offline`.
        ModelError: the variable is not set, or holds what cannot be a key.
    """
    validate_base_url(base_url, api_key_env)
    url = _checked(base_url)
    if offline and not Endpoint(url).loopback:
        raise InputError(
            f"the server {url} is not on this machine, and --offline allows no other; start one here (base_url: "
            "http://localhost:8000/v1) or take another translator"
        )
    variable = api_key_env or (OPENAI_KEY if url == OPENAI else None)
    return Endpoint(url, variable, _key(variable, url) if variable else "")


def validate_base_url(base_url: object, api_key_env: object) -> None:
    """Refuses a key where an address or the name of a variable belongs, before a recipe is saved anywhere.

    Raises:
        InputError: `base_url` holds more than an address, or `api_key_env` cannot be a variable's name.
    """
    if isinstance(base_url, str):
        _checked(base_url)
    if isinstance(api_key_env, str) and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env, re.IGNORECASE | re.ASCII):
        raise InputError(
            "the translator's option 'api_key_env' is the name of an environment variable, such as OPENAI_API_KEY, and "
            "never the key itself"
        )


def _checked(base_url: str) -> str:
    example = "write it like http://localhost:8000/v1"
    try:
        parts = urlsplit(base_url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"the translator's option 'base_url' is no address ({error}); {example}") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "the translator's option 'base_url' holds more than an address; a key belongs in an environment variable "
            f"that 'api_key_env' names, and the address is written like {parts.scheme}://{host}/v1"
        )
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise InputError(f"the translator's option 'base_url' is not the address of a server: {base_url!r}; {example}")
    return parts.geturl().rstrip("/")


def _key(variable: str, url: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ModelError(
            f"the environment variable {variable}, which should hold the key for {url}, is not set; set it, or name "
            "another with the translator's option 'api_key_env'"
        )
    if not (key.isascii() and key.isprintable()):
        raise ModelError(f"the environment variable {variable} holds no key, but something unprintable; set it anew")
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
