"""A hook of MkDocs: links from a page to a file outside of docs/ lead to the repository, or are plain text without one.

On GitHub such links (`../pipelines`, `../examples/edge`) work as they stand; the built site has no such files. Where
the repository lies is `repo_url` of mkdocs.yml, which comes from the variable OPENAVS_REPOSITORY.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\.?/[^)\s#]+)(#[^)\s]*)?\)")
BRANCH = "blob/main"


def relinked(markdown: str, page: str, repository: str | None) -> str:
    """The page's text with the links that leave docs/ replaced; `page` is its path below docs/."""

    def replace(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/"):
            return found[0]
        return f"[{text}]({repository.rstrip('/')}/{BRANCH}/{path}{anchor})" if repository else text

    return LINK.sub(replace, markdown)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """What MkDocs calls with the text of every page."""
    return relinked(markdown, page.file.src_uri, config.repo_url)
