"""One run as one HTML file that opens offline: ``render`` turns a :class:`StoredRun` into the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from antibackdoor.errors import StorageError
from antibackdoor.report.album import pack, suspects_album, unpack
from antibackdoor.report.render import render
from antibackdoor.storage import ALBUM, add_arrays, add_text, load_arrays, load_run
from antibackdoor.stored import StoredRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["StoredRun", "render", "write"]


def write(run: Path, images: NDArray[np.uint8] | None = None) -> Path:
    """Write report.html into a finished run folder and return its path.

    Args:
        run: The folder.
        images: uint8 (N, C, H, W), as the run saw them: then the pictures of its suspects are made of them and kept in
            ``album.npz``. None where those that are there are to be shown.

    Raises:
        StorageError: The folder is damaged or cannot be written.
    """
    page, view = run / "report.html", load_run(run)
    if images is None:
        arrays = load_arrays(run, ALBUM)
        try:
            album = None if arrays is None else unpack(arrays, view)
        except StorageError as error:
            raise StorageError(f"{run / ALBUM}: {error}") from None
    else:
        album = suspects_album(view, images)
        add_arrays(run, ALBUM, pack(album))
    add_text(run, page.name, render(view, album, run))
    return page
