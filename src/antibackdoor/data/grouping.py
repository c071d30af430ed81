"""A column of a table of images, such as who contributed each, by the ids of the images."""

from __future__ import annotations

from pathlib import Path

from antibackdoor.data.manifest import SUFFIXES, read_table
from antibackdoor.data.remote import Copies, is_address
from antibackdoor.data.splits import shown
from antibackdoor.errors import DataError
from antibackdoor.progress import SILENT, Progress

__all__ = ["groups_of"]


def groups_of(source: str, column: str, progress: Progress = SILENT) -> dict[str, str]:
    """Return what a column of a table says of every image.

    Args:
        source: A table of paths and labels, here or at an address.
        column: Its name, whatever the case of its letters.
        progress: Shows the copying.

    Returns:
        The value of each id, "" where it is empty.

    Raises:
        DataError: The source is no such table, or has no such column.
    """
    folder, _, name = source.rstrip("/").rpartition("/")
    suffix = Path(name).suffix.lower()
    path = Path(source)
    if suffix in SUFFIXES and is_address(source):
        copies = Copies(folder)
        copies.fetch([name], progress)
        path = copies.files / name
    wanted = column.strip().casefold()
    if suffix not in SUFFIXES or not path.is_file():
        raise DataError(f"data.group_by: {source} has no columns; it takes a table of paths and labels")
    table = read_table(path, ("path", "id", wanted))
    if wanted not in table.columns or "path" not in table.columns:
        raise DataError(f"data.group_by: {source} has no column {column!r}; it has {shown(table.names)}")
    ids = table.columns["id" if "id" in table.columns else "path"]
    return dict(zip(ids, table.columns[wanted], strict=True))
