"""One run as one HTML file that opens offline: ``render`` turns a :class:`StoredRun` into the page."""

from __future__ import annotations

from pathlib import Path

from antibackdoor.report.render import render
from antibackdoor.storage import add_text, load_run
from antibackdoor.stored import StoredRun

__all__ = ["StoredRun", "render", "write"]


def write(run: Path) -> Path:
    """Write report.html into a finished run folder, from what the folder holds, and return its path.

    Raises:
        StorageError: The folder is damaged or cannot be written.
    """
    page = run / "report.html"
    add_text(run, page.name, render(load_run(run)))
    return page
