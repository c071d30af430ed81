"""A poisoned set as files: PNG folders that ``train`` reads, and a manifest of the truth."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from torch import Tensor

from antibackdoor.csvs import as_text, lines_of
from antibackdoor.data.picture import as_image
from antibackdoor.data.walk import TRUTH, TRUTH_COLUMNS, holds_truth
from antibackdoor.errors import RunExistsError, StorageError
from antibackdoor.naming import check_folder_names, names_below
from antibackdoor.progress import SILENT, Bar, Progress
from antibackdoor.types import ImageSet, PoisonedSet

__all__ = ["Placer", "export_poisoned", "refuse_out", "write_png"]

_PARTS, _PARTIAL = ("train", "triggered_test"), ".partial"


def export_poisoned(
    out: Path,
    train: PoisonedSet,
    triggered: PoisonedSet | None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write ``out/train/<class>/*.png``, ``out/train/manifest.csv`` and ``out/triggered_test/<original class>/*.png``.

    The manifest has the columns ``id,label,original_label,poisoned,cover,source``; id is the path below ``out``, as it
    stands in a run's suspects.csv, source is the id in the set that was poisoned. Files keep the names that they have
    there; see :func:`antibackdoor.naming.names_below`.

    Args:
        out: A folder that does not exist yet, or is empty.
        train: The poisoned training set.
        triggered: The triggered test set, or None where there is no test set.
        overwrite: Replace ``out/train`` and ``out/triggered_test``.
        progress: Shows the work.

    Raises:
        RunExistsError: The folder holds something.
        StorageError: It cannot be written; nothing is left behind.
    """
    refuse_out(out, None, overwrite=overwrite)
    check_folder_names(train.observed.classes)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    partial = out / _PARTIAL
    total = len(train.observed) + (len(triggered.observed) if triggered else 0)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with progress.bar("writing", total, "images") as bar:
            original, labels = train.original_labels.tolist(), train.observed.labels.tolist()
            names = _write_images(partial / "train", train.observed, original, labels, bar)
            _write_manifest(partial / "train" / TRUTH, train, names)
            if triggered is not None:
                original = triggered.original_labels.tolist()
                _write_images(partial / "triggered_test", triggered.observed, original, original, bar)
        _exchange(out, partial)
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise StorageError(f"cannot write {out}: {error.strerror or error}{full}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the set is in it
                folder.rmdir()


def _exchange(out: Path, partial: Path) -> None:
    """Move the new parts of a set into place, and those before out of it.

    At every moment the folder holds no part, or ``train`` with its manifest and perhaps the other: so a kill leaves
    what ``--overwrite`` takes for a set of ours.
    """
    old = partial / "old"
    old.mkdir()
    for name in reversed(_PARTS):
        if (out / name).exists():
            os.replace(out / name, old / name)
    for name in _PARTS:
        if (partial / name).exists():
            os.replace(partial / name, out / name)


def refuse_out(out: Path, source: str | None, *, overwrite: bool) -> None:
    """Check that a poisoned set may be written to ``out``.

    Args:
        out: The folder.
        source: What is poisoned, which must not be overwritten or written into; None where it is no path.
        overwrite: Replace a set that is there.

    Raises:
        RunExistsError: It holds something, or images that are no poisoned set of ours, or is where the images come
            from.
        StorageError: It is a file.
    """
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; --out is a folder")
    if source is not None and Path(source).is_dir():
        read = Path(source).resolve()
        for part in ((out / name).resolve() for name in _PARTS):
            if part == read or read in part.parents or part in read.parents:
                raise RunExistsError(f"{out} would be written over the images of {source}; give another --out")
    elif source is not None and any((out / name).resolve() in Path(source).resolve().parents for name in _PARTS):
        raise RunExistsError(f"{out} would be written over {source}; give another --out")
    if out.exists() and not overwrite and any(path.name != _PARTIAL for path in out.iterdir()):
        raise RunExistsError(f"{out} is not empty; give --overwrite to replace the set in it, or another --out")
    if any((out / part).exists() for part in _PARTS) and not holds_truth(out / "train" / TRUTH):
        raise RunExistsError(
            f"{out} holds {' or '.join(_PARTS)}, but no set that antibackdoor poisoned, so --overwrite leaves it as "
            "it is; give another --out"
        )


def _write_images(root: Path, data: ImageSet, original: list[int], labels: list[int], bar: Bar) -> list[str]:
    own, placed = ([data.classes[label] for label in those] for those in (original, labels))
    names = names_below(data.ids, own, placed, suffix=".png")
    for name in sorted(set(placed)):
        (root / name).mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(names):
        write_png(root / name, data.images[row])
        bar.advance()
    return [f"{root.name}/{name}" for name in names]


def write_png(path: Path, image: Tensor) -> None:
    """Write one image, uint8 (C, H, W), as a PNG file; its folder is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(image.numpy()).save(path)


def _write_manifest(path: Path, train: PoisonedSet, names: list[str]) -> None:
    classes = [as_text(name) for name in train.observed.classes]
    columns = zip(
        names,
        train.observed.labels.tolist(),
        train.original_labels.tolist(),
        train.poison.tolist(),
        train.cover.tolist(),
        (train.observed.ids[row] for row in train.made_of.tolist()),
        strict=True,
    )
    rows = [
        (as_text(name), classes[label], classes[original], int(poisoned), int(cover), as_text(source))
        for name, label, original, poisoned, cover, source in columns
    ]
    path.write_text(lines_of([TRUTH_COLUMNS, *rows]), encoding="utf-8", errors="backslashreplace", newline="")


class Placer:
    """Puts a file in another place: by a hard link, where that cannot be by a symbolic one; or as a copy.

    Args:
        copy: Copy it.
        progress: Told where hard links cannot be made.
    """

    def __init__(self, copy: bool, progress: Progress) -> None:
        self._copy, self._hard, self._progress = copy, True, progress

    def __call__(self, source: Path, target: Path) -> None:
        """Put a file there; folders are made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        real = Path(os.path.realpath(source))
        if self._copy:
            shutil.copyfile(real, target)
            return
        if self._hard:
            try:
                os.link(real, target)
                return
            except OSError:  # another disk, a file of somebody else, or a system without links
                self._hard = False
                self._progress.say(
                    "hard links cannot be made there; symbolic ones are, so leave the images where they are"
                )
        os.symlink(real, target)
