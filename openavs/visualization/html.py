"""HTML rendering: self-contained pages with all values escaped, and no script but their own."""

from __future__ import annotations

import base64
import hashlib
import io
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from openavs.structures.masks import small_size
from openavs.structures.types import ImageArray
from openavs.utils.text import pluralize
from openavs.visualization.reasons import (
    caveat_texts,
    count_caveats,
    is_unresolved,
    remedy_text,
    unprompted_texts,
    verdict_text,
)


def asset(name: str) -> str:
    """Return the text of a file below openavs/assets, such as `report/report.css`."""
    return (resources.files("openavs") / "assets" / name).read_text("utf-8")


def render(template: str, style: str, script: str = "", **values: Any) -> bytes:
    """Render a template of openavs/assets as UTF-8.

    The template receives `style` and `script` unescaped, and `style_hash` and `script_hash`, their SHA-256 for the
    Content-Security-Policy: the browser then applies this style sheet and this script, and no other.
    """
    own = {
        "style": Markup(style),
        "style_hash": _digest(style),
        "script": Markup(script),
        "script_hash": _digest(script),
    }
    page = _environment().get_template(template).render(**own, **values)
    return bytes(page.encode("utf-8", "replace"))


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def jpeg_data_uri(image: ImageArray, quality: int = 82) -> str:
    """Encode an image `[H, W, 3]` as a JPEG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def png_data_uri(image: ImageArray) -> str:
    """Encode an image `[H, W, 4]` with opacity as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def image_data(image: ImageArray, longest: int) -> dict[str, Any]:
    """Return an image, scaled down to `longest` pixels, as a data URI `src` with its `width` and `height`."""
    small = shrink_image(image, longest)
    return {"src": jpeg_data_uri(small), "width": small.shape[1], "height": small.shape[0]}


def shrink_image(image: ImageArray, longest: int) -> ImageArray:
    """Scale an image `[H, W, 3]` down to at most `longest` pixels."""
    height, width = small_size((image.shape[0], image.shape[1]), longest)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


@cache
def _environment() -> Any:
    """The jinja2 environment; templates include one another by their asset names."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(asset),
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["num"] = lambda value, digits=2: "" if value is None else f"{value:.{digits}f}"
    environment.filters |= {"pluralize": pluralize, "verdict": verdict_text}
    environment.filters["caveats"] = lambda frames: caveat_texts(count_caveats(frames), len(frames))
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters |= {"unprompted": unprompted_texts, "remedy": remedy_text}
    environment.tests["unresolved"] = is_unresolved
    return environment
