"""From the path that a user names to lists of images, whatever they lie in; nothing is decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from antibackdoor.data import columns, tar
from antibackdoor.data.folder import parts_of, scan
from antibackdoor.data.listing import Listing
from antibackdoor.data.manifest import SUFFIXES, load_manifest
from antibackdoor.data.remote import SCHEMES, Copies, is_address, spoken_of
from antibackdoor.data.shards import (
    SPECIAL,
    Shards,
    expanded,
    is_pattern,
    parted,
    shards_in,
    shards_of_pattern,
)
from antibackdoor.data.splits import Splits, chosen_parts
from antibackdoor.data.tables import PARQUET
from antibackdoor.errors import DataError
from antibackdoor.progress import SILENT, Progress

__all__ = ["KINDS", "list_images"]

KINDS = (
    f"a folder with one subfolder a class, a table of paths and labels ({', '.join(SUFFIXES)}), {PARQUET} or "
    f"{tar.SUFFIX} files with images inside (or a folder of them), a .npz, 'embedded' or 'hub:NAME'; or the "
    f"address ({', '.join(SCHEMES)}) of any but a .npz"
)


def list_images(
    source: str, progress: Progress, *, skip_bad: bool = False, whole: bool = False, alone: bool = False
) -> Splits | None:
    """List the images of a source.

    Args:
        source: A folder, a file, or a pattern of files; or the address of one, which is copied to this machine.
        progress: Told what is left out.
        skip_bad: See :func:`antibackdoor.data.manifest.load_manifest`.
        whole: The source is a test set; its images are in ``train``.
        alone: Its own test set, if it has one, is not wanted.

    Returns:
        The images, or None where the source is a file of another kind.

    Raises:
        DataError: Nothing there, or what cannot be read.
    """
    if is_address(source):
        return _of_address(source, progress, skip_bad=skip_bad, whole=whole, alone=alone)
    path = Path(source)
    if is_pattern(source):
        return _of_pattern(shards_of_pattern(source), source, progress, whole=whole, alone=alone)
    if path.is_dir():
        return _of_folder(path, progress, whole=whole, alone=alone)
    if not path.exists():
        raise DataError(f"{path}: no such folder or file. Expected {KINDS}")
    suffix = path.suffix.lower()
    if suffix == tar.SUFFIX or (suffix == PARQUET and columns.columns_of(path) is not None):
        return _of_shards({"": Shards(path.parent, (path.name,))}, source, progress, whole=whole, alone=alone)
    if suffix in SUFFIXES:
        return load_manifest(path, progress, skip_bad=skip_bad, whole=whole)
    return None


def _of_folder(path: Path, progress: Progress, *, whole: bool, alone: bool) -> Splits:
    if (saved := columns.saved_parts(path)) is not None:
        return _of_shards(saved, str(path), progress, whole=whole, alone=alone)
    for suffix in (tar.SUFFIX, PARQUET):
        if (shards := shards_in(path, suffix)) is not None:
            return _of_shards(_by_part(shards), str(path), progress, whole=whole, alone=alone)
    if whole:
        return Splits(scan(path, say=progress.say), None)
    parts = parts_of(path, SILENT.say if alone else progress.say)
    if parts.train is None:
        return Splits(scan(path, say=progress.say), None)
    train = scan(path / parts.train, f"{parts.train}/", progress.say)
    if parts.test is None or alone:
        return Splits(train, None)
    return Splits(train, scan(path / parts.test, f"{parts.test}/", progress.say))


def _of_pattern(shards: Shards, source: str, progress: Progress, *, whole: bool, alone: bool) -> Splits:
    kinds = {Path(file).suffix.lower() for file in shards.files}
    if kinds == {tar.SUFFIX} or kinds == {PARQUET}:
        return _of_shards({"": shards} if whole else _by_part(shards), source, progress, whole=whole, alone=alone)
    raise DataError(f"{source}: a pattern stands for {tar.SUFFIX} or for {PARQUET} files")


def _of_address(source: str, progress: Progress, *, skip_bad: bool, whole: bool, alone: bool) -> Splits:
    """Copy what an address names to this machine, and list the copies by the names that they have there."""
    if SPECIAL.search(source):
        start, rest = parted(source)
        copies, files = Copies(start), []
        for name in expanded(rest, source):
            found = copies.matching(name) if "*" in name else [name]
            if not found:
                raise DataError(f"{source}: {name}: no such file there")
            files += found
        copies.fetch(files, progress)
        with spoken_of(copies.files, copies.address):
            splits = _of_pattern(Shards(copies.files, tuple(files)), source, progress, whole=whole, alone=alone)
        return _called(splits, source)
    folder, _, name = source.rstrip("/").rpartition("/")
    suffix = Path(name).suffix.lower()
    if suffix in (tar.SUFFIX, *SUFFIXES):
        copies = Copies(folder)
        copies.fetch([name], progress)
        path = copies.files / name
        with spoken_of(copies.files, copies.address):
            if suffix == tar.SUFFIX or (suffix == PARQUET and columns.columns_of(path) is not None):
                shards = Shards(copies.files, (name,))
                return _called(_of_shards({"": shards}, source, progress, whole=whole, alone=alone), source)
            return _called(load_manifest(path, progress, skip_bad=skip_bad, whole=whole, origin=copies), source)
    if suffix == ".npz":
        raise DataError(f"{source}: a .npz is not read from an address; copy it to this machine first")
    copies = Copies(source)
    found = copies.find()
    copies.fetch(found, progress)
    copies.keep_only(found)
    with spoken_of(copies.files, copies.address):
        return _called(_of_folder(copies.files, progress, whole=whole, alone=alone), source)


def _called(splits: Splits, source: str) -> Splits:
    """Call copies what they are called where they came from."""
    train = replace(splits.train, where=source)
    return Splits(train, None if splits.test is None else replace(splits.test, where=f"{source} (test)"))


def _by_part(shards: Shards) -> dict[str, Shards]:
    return {name: Shards(shards.root, tuple(files)) for name, files in shards.by_part().items()}


def _of_shards(parts: dict[str, Shards], where: str, progress: Progress, *, whole: bool, alone: bool) -> Splits:
    """List the parts of a set that lies in files which hold many images."""
    counts = {name: len(shards.files) for name, shards in parts.items()}
    own, held_out = chosen_parts(counts, "files", where, progress.say, whole=whole)
    if own is None:
        own = next(iter(parts))
        if len(parts) > 1:
            raise DataError(f"{where}: which of its parts ({', '.join(parts)}) is the test set? Name its files")
    train = _listing(parts[own], where, progress)
    if train is None:
        raise DataError(f"{where}: all labels are -1, which stands for none")
    if held_out is None or alone:
        return Splits(train, None)
    test = _listing(parts[held_out], f"{where} ({held_out})", progress)
    if test is None:
        progress.say(f"{where}: {held_out} is not used: it has no labels")
    return Splits(train, test)


def _listing(shards: Shards, where: str, progress: Progress) -> Listing | None:
    if shards.files[0].lower().endswith(tar.SUFFIX):
        return tar.list_tars(shards, where, progress)
    return columns.list_columns(shards, where, progress)
