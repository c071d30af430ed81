"""Parquet files through pyarrow, which is asked for only where one is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antibackdoor.errors import DataError

__all__ = ["PARQUET", "Table", "need_pyarrow", "parquet_table", "texts"]

PARQUET = ".parquet"


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text.

    Attributes:
        names: Of all columns there are, in small letters.
        columns: Those that were asked for and are there, by name; all have ``rows`` values.
        rows: How many.
        place: Says where a row stands, for a message.
    """

    names: tuple[str, ...]
    columns: dict[str, list[str]]
    rows: int
    place: Callable[[int], str]


def need_pyarrow(path: Path) -> Any:
    """Return the package ``pyarrow``.

    Raises:
        DataError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs the package 'pyarrow', which is not installed: pip install antibackdoor[tables]"
        ) from error
    return pyarrow


def parquet_table(path: Path, wanted: Sequence[str]) -> Table:
    """Read columns of a parquet file as text.

    Args:
        path: The file.
        wanted: Names in small letters; those that are not there are left out.

    Raises:
        DataError: pyarrow is not installed, the file cannot be read, or a column is neither text nor whole numbers, or
            lacks values.
    """
    pyarrow = need_pyarrow(path)
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = {name.strip().casefold(): name for name in file.schema_arrow.names}
            present = {name: names[name] for name in wanted if name in names}
            table = file.read(columns=list(present.values()))
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error
    columns = {name: texts(path, name, table.column(own)) for name, own in present.items()}
    return Table(tuple(names), columns, table.num_rows, lambda row: f"row {row}")


def texts(path: Path, name: str, column: Any) -> list[str]:
    """Return the values of a pyarrow column of text or whole numbers as text.

    Raises:
        DataError: Another type, or a value that is missing.
    """
    types = need_pyarrow(path).types
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if types.is_floating(kind) or types.is_decimal(kind):
        raise DataError(
            f"{path}: the column {name!r} is {kind}; labels and names are text or whole numbers, such as "
            f"frame[{name!r}].astype('int64')"
        )
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise DataError(f"{path}: the column {name!r} is {kind}; expected text or whole numbers")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{path}, row {row}: no {name}")
    return [str(value) for value in column.to_pylist()]
