"""Texts that would do harm where a page took them for HTML, a reader of pages that looks for it, and a pickle bomb."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openavs.visualization.html import asset

PLAYER = asset("report/player.js")
MARK = "hostile-canary"
TEXTS = (
    f"<script>{MARK}</script>",
    f"\"><img src=x onerror='{MARK}'>",
    f"' onmouseover='{MARK}' x='",
    f"</style></title></textarea><svg/onload={MARK}>",
    f"javascript:{MARK}",
    f"{{{{ {MARK} }}}} {{% raw %}} {MARK}",
    f"<iframe srcdoc='&lt;script&gt;{MARK}&lt;/script&gt;'>",
    f"<!--{MARK}--><base href=//evil.example>",
    f"‮{MARK}‬ \u2028 \x01 ＜script＞",
)
ALL = " ".join(TEXTS)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


_RUNS = {"script", "iframe", "object", "embed", "base", "link", "form", "applet", "frame", "frameset", "foreignobject"}
_ADDRESSES = {"src", "href", "xlink:href", "action", "formaction", "data", "poster", "srcset", "background", "srcdoc"}


class Page(HTMLParser):
    """Reads a page as a browser does and notes what in it could run or fetch something.

    Attributes:
        text: what a visitor reads.
        harm: a line for each element, attribute or address that should not be there.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.harm: list[str] = []
        self._inside: list[str] = []
        self._is_data, self._script = False, ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _RUNS - {"script"}:
            self.harm.append(f"<{tag}>")
        if tag in ("style", "title", "script"):
            self._inside.append(tag)
            self._is_data, self._script = dict(attrs) == {"type": "application/json"}, ""
        for name, value in attrs:
            if name.startswith("on"):
                self.harm.append(f"{tag} {name}")
            if name in _ADDRESSES and not _harmless(value or ""):
                self.harm.append(f"{tag} {name}={value!r:.60}")
            if name == "style" and MARK in (value or ""):
                self.harm.append(f"{tag} style={value!r:.60}")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()
        # A page has the script of the player and its data, in which no tag can begin.
        if tag == "script" and ("<" in self._script if self._is_data else self._script != PLAYER):
            self.harm.append("<script>")

    def handle_data(self, data: str) -> None:
        if self._inside == ["style"] and MARK in data:
            self.harm.append("a style sheet holds it")
        if self._inside == ["script"]:
            self._script += data
        self.text += data

    def handle_comment(self, data: str) -> None:
        if MARK in data:
            self.harm.append("a comment holds it")


def _harmless(address: str) -> bool:
    """A place on the page itself, or an image, sound or video that the address carries."""
    parts = urlsplit(address.strip())
    if parts.scheme == "data" and parts.path.startswith("image/svg+xml;base64,"):
        return not Page(base64.b64decode(parts.path.partition(",")[2]).decode()).harm
    if parts.scheme == "data":
        return parts.path.split(";")[0] in ("image/jpeg", "image/png", "video/mp4", "audio/wav")
    return address.startswith("#") or not address
