"""MkDocs hook: links to files outside docs/ become links to the repository, or plain text without a repository.

On GitHub such links (`../pipelines`, `../examples/edge`) work unchanged; the built site has no such files. The address
of the repository is `repo_url` of mkdocs.yml, set by the environment variable OPENAVS_REPOSITORY.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\.?/[^)\s#]+)(#[^)\s]*)?\)")
BRANCH = "blob/main"


def relinked(markdown: str, page: str, repository: str | None) -> str:
    """Replace the links of a page that leave docs/; `page` is its path below docs/."""

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/"):
            return match[0]
        return f"[{text}]({repository.rstrip('/')}/{BRANCH}/{path}{anchor})" if repository else text

    return LINK.sub(replace, markdown)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Rewrite the links of one page; MkDocs calls this with every page."""
    return relinked(markdown, page.file.src_uri, config.repo_url)
