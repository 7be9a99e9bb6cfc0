"""Fonts of text in pictures, and texts cut to a width."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=8)
def text_font(size: int) -> Font:
    """Return the font of all pictures, at a height in pixels."""
    return ImageFont.load_default(size)


def truncate_text(text: str, font: Font, max_width: float) -> str:
    """Return the text in one line, truncated to fit; empty if not even three letters do."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:200]).split())
    if font.getlength(line) <= max_width:
        return line
    while len(line) > 3:
        line = line[:-1].rstrip()
        if font.getlength(line + "...") <= max_width:
            return line + "..."
    return ""
