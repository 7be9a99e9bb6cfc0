"""What the HTML pages share: one file each, no network and no script, everything that comes from outside escaped."""

from __future__ import annotations

import base64
import hashlib
import io
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image as Pictures

from openavs.structures.types import ImageArray
from openavs.utils.text import pluralize


def asset(name: str) -> str:
    """The text of a file below openavs/assets (`report/report.css`)."""
    return (resources.files("openavs") / "assets" / name).read_text("utf-8")


def render(template: str, style: str, **values: Any) -> bytes:
    """A page from the template of that asset name.

    The template gets `style`, our own text, and `style_hash`, which its Content-Security-Policy must name: the browser
    then applies that style sheet and nothing else.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    page = _engine().get_template(template).render(style=Markup(style), style_hash=digest, **values)
    return bytes(page.encode("utf-8", "replace"))


def jpeg_address(image: ImageArray, quality: int = 82) -> str:
    """A picture `[H, W, 3]` as a data address."""
    buffer = io.BytesIO()
    Pictures.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


@cache
def _engine() -> Any:
    """Templates include one another by their asset names."""
    engine = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(asset),
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters["num"] = lambda value, digits=2: "" if value is None else f"{value:.{digits}f}"
    engine.filters["counted"] = pluralize
    return engine
