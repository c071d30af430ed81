"""A poisoned set as files: PNG folders that ``train`` reads, and a manifest of the truth."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from antibackdoor.errors import RunExistsError, StorageError
from antibackdoor.progress import SILENT, Bar, Progress
from antibackdoor.types import ImageSet, PoisonedSet

__all__ = ["export_poisoned"]


def export_poisoned(
    out: Path,
    train: PoisonedSet,
    triggered: PoisonedSet | None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write ``out/train/<class>/*.png``, ``out/train/manifest.csv`` and ``out/triggered_test/<original class>/*.png``.

    The manifest has the columns ``id,label,original_label,poisoned,cover``; id is the path below ``out``, as it stands
    in a run's suspects.csv.

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
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise RunExistsError(f"{out} is not empty; give --overwrite to replace the set in it, or another --out")
    partial = out.with_name(f".{out.name}.partial")
    total = len(train.observed) + (len(triggered.observed) if triggered else 0)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with progress.bar("writing", total, "images") as bar:
            names = _write_images(partial / "train", train.observed, train.observed.labels.tolist(), bar)
            _write_manifest(partial / "train" / "manifest.csv", train, names)
            if triggered is not None:
                original = triggered.original_labels.tolist()
                _write_images(partial / "triggered_test", triggered.observed, original, bar)
        out.mkdir(parents=True, exist_ok=True)
        for part in partial.iterdir():
            shutil.rmtree(out / part.name, ignore_errors=True)
            os.replace(part, out / part.name)
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise StorageError(f"cannot write {out}: {error.strerror or error}{full}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(root: Path, data: ImageSet, labels: list[int], bar: Bar) -> list[str]:
    names = []
    for label in sorted(set(labels)):
        (root / data.classes[label]).mkdir(parents=True, exist_ok=True)
    for row, label in enumerate(labels):
        name = f"{data.classes[label]}/{row:06d}.png"
        pixels = data.images[row].numpy()
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        picture.save(root / name)
        names.append(f"{root.name}/{name}")
        bar.advance()
    return names


def _write_manifest(path: Path, train: PoisonedSet, names: list[str]) -> None:
    classes = train.observed.classes
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "label", "original_label", "poisoned", "cover"])
        rows = zip(
            names,
            train.observed.labels.tolist(),
            train.original_labels.tolist(),
            train.poison.tolist(),
            train.cover.tolist(),
            strict=True,
        )
        for name, label, original, poisoned, cover in rows:
            writer.writerow([name, classes[label], classes[original], int(poisoned), int(cover)])
