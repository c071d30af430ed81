"""Which file each training image of a source is."""

from __future__ import annotations

import os
from pathlib import Path

from antibackdoor.data.listed import list_images
from antibackdoor.data.listing import Listing
from antibackdoor.progress import SILENT

__all__ = ["files_of"]


def files_of(source: str | Path) -> dict[str, Path] | None:
    """Return the file of each training image of a source by its id.

    Args:
        source: As in :func:`antibackdoor.data.sources.load`.

    Returns:
        The files of a folder or a table, in the order of the set; None of anything else, whose images are no files.

    Raises:
        DataError: A folder without images, a table that is none, or what cannot be read.
    """
    splits = list_images(str(source), SILENT, skip_bad=True, alone=True)
    if splits is None or type(splits.train) is not Listing:
        return None
    listing = splits.train
    return {name: Path(os.path.join(listing.root, file)) for name, file in zip(listing.ids, listing.files, strict=True)}
