"""The folder of a grid: one process at a time, one record a cell, what cells share; written whole or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from antibackdoor.benchmark.cells import Cell
from antibackdoor.benchmark.grid import GridConfig
from antibackdoor.defences import FORMER_NAMES
from antibackdoor.errors import RunExistsError, StorageError
from antibackdoor.files import atomic_write_bytes, clear_partials, locked, sha256_of
from antibackdoor.types import Json

__all__ = ["CELL_FORMAT", "FileStore", "GridFolder", "Record", "claimed", "read_records"]

CELL_FORMAT = "antibackdoor cell 1"
_GRID_FORMAT = "antibackdoor grid 1"
_GRID, _LOCK, _CELLS, _SHARED = "grid.json", ".lock", "cells", "shared"
_TRAITS = {"data", "attack", "defence", "model", "seed"}  # what every record says of its cell
_CHECKSUM = "sha256"  # of a record: of all its other entries

Record: TypeAlias = dict[str, Json]


@dataclass(frozen=True)
class FileStore:
    """What cells share, as files.

    Attributes:
        folder: Where they lie.
    """

    folder: Path

    def get(self, name: str) -> bytes | None:
        """Return the content of a file, or None where there is none."""
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            return None

    def put(self, name: str, blob: bytes) -> None:
        """Keep a file.

        Raises:
            StorageError: It cannot be written.
        """
        atomic_write_bytes(self.folder / name, blob)


class GridFolder:
    """The folder of a grid that this process holds; see :func:`claimed`.

    Args:
        out: The folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.store = FileStore(out / _SHARED)

    def begin(self, grid: GridConfig, cells: Iterable[Cell]) -> None:
        """Write which cells the grid has now; records of other cells stay, and are left out of what is read.

        Raises:
            StorageError: It cannot be written.
        """
        values = {"format": _GRID_FORMAT, "config": grid.dump(), "cells": [cell.file for cell in cells]}
        atomic_write_bytes(self.out / _GRID, _to_bytes(values))
        for folder in (self.out, self.out / _CELLS, self.out / _SHARED):
            clear_partials(folder)

    def record_of(self, cell: Cell) -> Record | None:
        """Return the record of a cell, or None where there is none that can be used.

        Raises:
            StorageError: It is of another format.
        """
        record = _read_record(self.out / _CELLS / cell.file)
        return record if record is not None and record.get("key") == cell.key else None

    def write(self, cell: Cell, record: Record) -> None:
        """Write the record of a cell.

        Raises:
            StorageError: It cannot be written.
        """
        checksum = sha256_of(_to_bytes(record))
        atomic_write_bytes(self.out / _CELLS / cell.file, _to_bytes({**record, _CHECKSUM: checksum}))


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[GridFolder]:
    """Hold the folder of a grid for this process alone, until the end of the block or of the process.

    Args:
        out: The folder; made if it is not there.

    Raises:
        RunExistsError: Another process holds it, or it holds files that are not a grid's.
        StorageError: It is of another format, a file, or cannot be written.
    """
    _refuse(out)
    busy = f"{out}: another process{{by}} runs a grid there; wait for its end, or give another --out"
    with locked(out / _LOCK, busy=busy):
        _refuse(out)  # What another process did before the lock was ours.
        yield GridFolder(out)


def read_records(out: Path) -> list[Record]:
    """Return the records that a grid's folder has, in the order of the grid; cells not run yet are left out.

    Raises:
        StorageError: It is not the folder of a grid, or it or one of its records is of another format.
    """
    names = _manifest(out).get("cells")
    files = [str(name) for name in names] if isinstance(names, list) else []
    found = (_read_record(out / _CELLS / Path(name).name) for name in files)
    return [record for record in found if record is not None]


def _refuse(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise StorageError(f"cannot write {out}: it is a file; --out is a folder")
    if (out / _GRID).exists():
        _manifest(out)
        return
    held = sorted(path.name for path in out.iterdir() if not _ours(path.name)) if out.exists() else []
    if held:
        raise RunExistsError(f"{out} holds other files ({', '.join(held[:3])}) and no grid; give another --out")


def _ours(name: str) -> bool:
    return name == _LOCK or name.startswith(f".{_GRID}.")


def _manifest(out: Path) -> dict[str, Json]:
    try:
        values = json.loads((out / _GRID).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{out} holds no grid (no {_GRID})") from None
    except OSError as error:
        raise StorageError(f"{out / _GRID} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{out / _GRID} is damaged: {error}; give another --out") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != _GRID_FORMAT or not isinstance(values, dict):
        raise StorageError(
            f"{out} is of another format ({found!r}, not {_GRID_FORMAT!r}) and stays as it is; use another --out"
        )
    return values


def _read_record(path: Path) -> Record | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None  # Not there, or damaged: the cell is run again.
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != CELL_FORMAT or not isinstance(record, dict):
        raise StorageError(
            f"{path} is of another format ({found!r}, not {CELL_FORMAT!r}) and stays as it is; use another --out"
        )
    cell = record.get("cell")
    if not isinstance(cell, dict) or not cell.keys() >= _TRAITS:
        raise StorageError(f"{path} is damaged: it does not say of which cell it is; remove it to run that cell again")
    checksum = record.pop(_CHECKSUM, None)  # Records of version 0.1 have none.
    try:
        if checksum is not None and checksum != sha256_of(_to_bytes(record)):
            return None
    except ValueError:  # It holds NaN, which none of ours does.
        return None
    return _with_names_of_now(record)


def _with_names_of_now(record: Record) -> Record:
    """Return a record in which a defence that was renamed since has the name that it has now."""
    cell, config = record.get("cell"), record.get("config")
    if not isinstance(cell, dict) or not isinstance(config, dict):
        return record
    now = {former: name for name, former in FORMER_NAMES.items()}.get(str(cell.get("defence")))
    settings = config.get("defence")
    if now is None or not isinstance(settings, dict) or "plugin" in settings:
        return record
    label = now if cell.get("defence_label") == cell["defence"] else cell.get("defence_label")
    return {
        **record,
        "cell": {**cell, "defence": now, "defence_label": label},
        "config": {**config, "defence": {**settings, "name": now}},
    }


def _to_bytes(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace")
