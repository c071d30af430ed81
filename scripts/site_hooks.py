"""What mkdocs does with the pages of docs/ beyond Markdown: links out of the folder lead to the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

__all__ = ["links_out", "on_page_markdown"]

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def links_out(text: str, page: str, repository: str) -> str:
    """Return a page whose links to files outside docs/ lead to the repository, or name the file where none is known.

    Args:
        text: Markdown.
        page: The page below docs/, such as ``attacks/static.md``.
        repository: Address without a slash at its end, or "".
    """

    def replaced(match: re.Match[str]) -> str:
        words, link = match.groups()
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(ROOT / "docs" / Path(page).parent / path))
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        place = target.relative_to(ROOT).as_posix()
        if repository:
            return f"[{words}]({repository}/blob/main/{place}{'#' + anchor if anchor else ''})"
        return words if words.strip("`") == place else f"{words} (`{place}`)"

    return _LINK.sub(replaced, text)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Change a page before it becomes HTML; mkdocs calls this."""
    return links_out(markdown, page.file.src_uri, (config.repo_url or "").rstrip("/"))
