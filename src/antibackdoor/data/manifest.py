"""A table of paths and labels: CSV, or parquet, one image a row."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from antibackdoor.csvs import read_back
from antibackdoor.data.labels import checked_labels, numbered
from antibackdoor.data.listing import Listing
from antibackdoor.data.remote import SCHEMES, Copies, is_address, server_of
from antibackdoor.data.splits import Splits, chosen_parts, shown
from antibackdoor.data.tables import PARQUET, Table, parquet_table
from antibackdoor.errors import DataError
from antibackdoor.progress import Progress

__all__ = ["SUFFIXES", "load_manifest", "read_table"]

SUFFIXES = (".csv", ".tsv", PARQUET)
DELIMITERS = ",;\t"
NEEDED, OPTIONAL = ("path", "label"), ("id", "split")
# What the columns are called elsewhere, to tell the user which one to rename.
ALSO_CALLED = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "name"),
    "label": ("class", "class_name", "category", "target", "y", "labels"),
}


def load_manifest(
    path: Path, progress: Progress, *, skip_bad: bool = False, whole: bool = False, origin: Copies | None = None
) -> Splits:
    """Read a table with the columns ``path`` and ``label``, and perhaps ``id`` and ``split``.

    Args:
        path: A .csv (UTF-8 with a header; commas, semicolons or tabs), .tsv or .parquet (needs pyarrow). Paths are
            below the folder of the table, absolute, or addresses, which are copied to this machine. Labels are names or
            whole numbers. An image is called by its ``id``, or by its path as it stands there. Rows whose ``split`` is
            train are trained on; of test, val, valid, validation and dev the first that there is gives the test set.
            Other columns are not read.
        progress: Told what is not used.
        skip_bad: A path that leads to no file is left to the reader of the images, which skips it; otherwise it is an
            error.
        whole: The table is a test set: its test rows, or all where it has no such rows, are in ``train``.
        origin: Where the table was copied from: its paths are below that folder, and are copied as well.

    Returns:
        The images in the order of the table. Classes are numbered by size where all labels are whole numbers, else in
        the order of their names.

    Raises:
        DataError: No such columns, no rows, no label, labels that are fractions or negative, two rows with one id, a
            path without a file, or a table that cannot be read.
    """
    table = read_table(path, (*NEEDED, *OPTIONAL))
    for column in NEEDED:
        if column not in table.columns:
            raise _no_column(path, column, table.names)
    if not table.rows:
        raise DataError(f"{path}: no rows; expected one image a row below the header")
    labels = checked_labels(table.columns["label"], lambda row: f"{path}, {table.place(row)}")
    ids = _checked_ids(path, table)
    files = _at_hand(path, table, origin, progress, skip_bad=skip_bad)
    if not skip_bad:
        _check_files(path, table, files)

    def listing(rows: Sequence[int], where: str) -> Listing:
        names, numbers = numbered([labels[row] for row in rows])
        return Listing(
            where=where,
            root=path.parent,
            files=tuple(files[row] for row in rows),
            classes=names,
            labels=numbers,
            ids=tuple(ids[row] for row in rows),
        )

    return _split(path, table, listing, progress, whole=whole)


def _split(
    path: Path, table: Table, listing: Callable[[Sequence[int], str], Listing], progress: Progress, *, whole: bool
) -> Splits:
    if "split" not in table.columns:
        return Splits(listing(range(table.rows), str(path)), None)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(table.columns["split"]):
        rows.setdefault(name.strip().casefold(), []).append(row)
    own, held_out = chosen_parts(
        {name: len(of) for name, of in rows.items()}, "rows", str(path), progress.say, whole=whole
    )
    train = listing(range(table.rows) if own is None else rows[own], str(path))
    return Splits(train, None if held_out is None else listing(rows[held_out], f"{path} ({held_out})"))


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """Read columns of a table as text.

    Args:
        path: A .csv, .tsv or .parquet.
        columns: Names in small letters; those that are not there are left out.

    Raises:
        DataError: It cannot be read, or a column cannot.
    """
    return parquet_table(path, columns) if path.suffix.lower() == PARQUET else _csv_table(path, columns)


def _csv_table(path: Path, asked: Sequence[str]) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=_delimiter(first), strict=True)
            names = [name.strip().casefold() for name in next(reader, [])]
            wanted = {name: names.index(name) for name in asked if name in names}
            for name in wanted:
                if names.count(name) > 1:
                    raise DataError(f"{path}: two columns are called {name!r}")
            columns: dict[str, list[str]] = {name: [] for name in wanted}
            lines: list[int] = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(names)}; fields "
                        "that hold the delimiter need quotes"
                    )
                lines.append(reader.line_num)
                for name, place in wanted.items():
                    columns[name].append(read_back(row[place]))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return Table(tuple(names), columns, len(lines), lambda row: f"line {lines[row]}")


def _delimiter(header: str) -> str:
    """Return what parts the columns that are needed, or a comma where nothing does."""
    for mark in DELIMITERS:
        if set(NEEDED) <= {name.strip().strip('"').casefold() for name in header.split(mark)}:
            return mark
    return DELIMITERS[0]


def _no_column(path: Path, column: str, names: Sequence[str]) -> DataError:
    near = next((name for name in ALSO_CALLED[column] if name in names), None)
    hint = f" Rename {near!r} if it is meant." if near else ""
    has = f"it has {shown(names)}" if any(names) else "it is empty"
    return DataError(f"{path}: no column {column!r}; {has}. Expected the columns path and label.{hint}")


def _checked_ids(path: Path, table: Table) -> list[str]:
    own = "id" in table.columns
    ids = table.columns["id" if own else "path"]
    seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not name:
            raise DataError(f"{path}, {table.place(row)}: no {'id' if own else 'path'}")
        if (before := seen.setdefault(name, row)) != row:
            what = "id" if own else "path"
            hint = "" if own else "; a column id tells them apart"
            raise DataError(
                f"{path}, {table.place(row)}: the {what} {name!r} is that of {table.place(before)} too{hint}"
            )
    return ids


def _at_hand(path: Path, table: Table, origin: Copies | None, progress: Progress, *, skip_bad: bool) -> list[str]:
    """Copy what does not lie on this machine; returns the file of every row, below the folder of the table or whole."""
    files = list(table.columns["path"])
    by_server: dict[str, dict[int, str]] = {}
    below: list[str] = []
    for row, name in enumerate(files):
        if is_address(name):
            server, rest = server_of(name)
            if server.partition("://")[0].lower() not in SCHEMES:
                raise DataError(
                    f"{path}, {table.place(row)}: {name} is no address that is read; known are {', '.join(SCHEMES)}"
                )
            by_server.setdefault(server, {})[row] = rest
        elif origin is not None:
            if os.path.isabs(name):
                raise DataError(f"{path}, {table.place(row)}: {name!r} is a path of another machine")
            below.append(name)
    if origin is not None and below:
        origin.fetch(below, progress, missing_ok=skip_bad)
    for server, rows in by_server.items():
        copies = Copies(server)
        copies.fetch(list(rows.values()), progress, missing_ok=skip_bad)
        for row, rest in rows.items():
            files[row] = str(copies.files / rest)
    return files


def _check_files(path: Path, table: Table, files: Sequence[str]) -> None:
    """Raise DataError if a path leads to no file."""
    missing = [(row, r) for row, name in enumerate(files) if (r := _not_a_file(os.path.join(path.parent, name)))]
    if missing:
        row, reason = missing[0]
        more = f" ({len(missing):,} of {table.rows:,} paths lead to no file)" if len(missing) > 1 else ""
        raise DataError(
            f"{path}, {table.place(row)}: {table.columns['path'][row]!r}: {reason}{more}. Paths are below "
            f"{path.parent.absolute()}, the folder of the table, or absolute; --skip-bad leaves such rows out"
        )


def _not_a_file(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # a NUL character
        return str(error)
    return None if stat.S_ISREG(mode) else "not a file"
