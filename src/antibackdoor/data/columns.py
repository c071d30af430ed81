"""Images as bytes in a column: parquet files, and what Hugging Face's ``save_to_disk`` wrote (Arrow).

Only pyarrow is needed, and nothing of what is read is run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from antibackdoor.data.labels import checked_labels, numbered
from antibackdoor.data.listing import Listing
from antibackdoor.data.opening import Payload, printable
from antibackdoor.data.shards import Shards
from antibackdoor.data.tables import PARQUET, need_pyarrow, texts
from antibackdoor.errors import DataError
from antibackdoor.progress import Progress

__all__ = ["ColumnListing", "Columns", "columns_of", "list_columns", "saved_parts"]

LABELS = ("label", "labels")
IMAGES = ("image", "img", "picture", "photo", "jpg", "png")  # of plain bytes
ROWS = 16  # decoded from a file at a time
LARGEST_GROUP = 2**31  # bytes of images in one row group, uncompressed
UNLABELLED = "-1"
DICT, STATE = "dataset_dict.json", "state.json"


@dataclass(frozen=True)
class Columns:
    """Which columns hold what.

    Attributes:
        image: Of bytes, or of a struct with the field ``bytes``.
        label: Of text or whole numbers.
        names: What the numbers of ``label`` stand for, or None.
        id: Of names that are unique, or None.
    """

    image: str
    label: str | None
    names: tuple[str, ...] | None
    id: str | None


@dataclass(frozen=True, eq=False)
class ColumnListing(Listing):
    """N images in rows of tables, one file after another.

    Attributes:
        image: The column.
        counts: Rows of each file.
    """

    image: str
    counts: tuple[int, ...]

    chunk: ClassVar[int] = 4  # their bytes are in memory while they wait

    def payloads(self, rows: Sequence[int]) -> Iterator[Payload]:
        """Yield the bytes of each of ``rows``, which rise; a few rows of a file are in memory at a time."""
        wanted = iter(rows)
        row = next(wanted, None)
        start = 0
        for file, count in zip(self.files, self.counts, strict=True):
            if row is not None and row < start + count:
                for values in _batches(self.root / file, [self.image]):
                    column = _bytes_of(values.column(0))
                    while row is not None and row < start + len(column):
                        yield column[row - start].as_py() or b""
                        row = next(wanted, None)
                    start += len(column)
                    count -= len(column)
            start += count

    def sample(self, count: int) -> Sequence[int]:
        """Return the first rows: others would take reading all before them."""
        return range(min(count, len(self)))

    def place(self, row: int) -> str:
        """Return where an image is found, for a message."""
        for file, count in zip(self.files, self.counts, strict=True):
            if row < count:
                return f"{self.root / printable(file)}, row {row}"
            row -= count
        return self.ids[row]


def columns_of(path: Path) -> Columns | None:
    """Say which columns of a parquet or Arrow file hold images, labels and ids.

    Args:
        path: The file; its suffix says which of the two.

    Returns:
        None where no column holds bytes of images.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """
    types = need_pyarrow(path).types
    with _reading(path):
        schema = _open(path).schema_arrow if path.suffix.lower() == PARQUET else _open(path).schema
    features = _features(path, schema)

    def holds_bytes(field: Any) -> bool:
        kind = field.type
        if types.is_struct(kind):
            return any(part.name == "bytes" and _is_binary(types, part.type) for part in kind)
        return _is_binary(types, kind) and field.name.casefold() in IMAGES

    images = [field.name for field in schema if holds_bytes(field)]
    if not images:
        return None
    of_classes = {name: feature["names"] for name, feature in features.items() if _is_class_label(feature)}
    label = max(of_classes, key=lambda name: len(of_classes[name]), default=None)
    if label is None:
        label = next((name for name in LABELS if name in schema.names), None)
    names = tuple(map(str, of_classes[label])) if label in of_classes else None
    return Columns(images[0], label, names, "id" if "id" in schema.names else None)


def list_columns(shards: Shards, where: str, progress: Progress) -> ColumnListing | None:
    """Read the labels and ids of tables, and leave the images for later.

    Args:
        shards: Parquet or Arrow files with the same columns.
        where: What to call them in messages.
        progress: Shows the work.

    Returns:
        The images; an id is that of the column ``id``, or the path that the image had where all have one of their own,
        or file and row. None where all labels are -1, which stands for none.

    Raises:
        DataError: A file that cannot be read, no column of images or of labels, labels that are fractions or negative,
            a value that is missing, an id twice, no row.
    """
    columns = columns_of(shards.root / shards.files[0])
    if columns is None or columns.label is None:
        missing = "images (bytes, or a struct with the field bytes)" if columns is None else "labels (label)"
        raise DataError(f"{where}: {printable(shards.files[0])} has no column of {missing}")
    labels: list[str] = []
    ids: list[str] = []
    paths: list[str | None] = []
    counts: list[int] = []
    with progress.bar("looking into tables", len(shards.files), "files") as bar:
        for file in shards.files:
            before = len(labels)
            for own_labels, own_ids, own_paths in _rows_of(shards.root / file, columns):
                labels += own_labels
                ids += own_ids
                paths += own_paths
            counts.append(len(labels) - before)
            bar.advance()
    if not labels:
        raise DataError(f"{where}: no rows")
    if set(labels) == {UNLABELLED}:
        return None
    if columns.id is None:
        own = [path for path in paths if path]
        if len(own) == len(labels) == len(set(own)):
            ids = own
        else:
            ids = [
                f"{printable(file)}/{row:05d}"
                for file, count in zip(shards.files, counts, strict=True)
                for row in range(count)
            ]
    listing = ColumnListing(where, shards.root, shards.files, (), (), tuple(ids), columns.image, tuple(counts))
    if len(set(ids)) < len(ids):
        name, _ = Counter(ids).most_common(1)[0]
        raise DataError(f"{listing.place(ids.index(name))}: the id {name!r} is that of another row too")
    classes, numbers = numbered(_named(checked_labels(labels, listing.place), columns, listing.place))
    return ColumnListing(where, shards.root, shards.files, classes, numbers, listing.ids, columns.image, listing.counts)


def saved_parts(folder: Path) -> dict[str, Shards] | None:
    """Return the Arrow files that ``save_to_disk`` wrote, by the part, "" for a set without parts.

    Returns:
        None where the folder is no such set.

    Raises:
        DataError: It is one, but damaged.
    """
    if (folder / DICT).is_file():
        names = _json(folder / DICT).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
            raise DataError(f"{folder / DICT}: no list of splits")
        return {name: Shards(folder, tuple(f"{name}/{file}" for file in _saved(folder / name))) for name in names}
    return {"": Shards(folder, _saved(folder))} if (folder / STATE).is_file() else None


def _saved(folder: Path) -> tuple[str, ...]:
    """Return the names of the files of one part."""
    listed = _json(folder / STATE).get("_data_files")
    names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if not names or not all(isinstance(name, str) and _is_plain(name) for name in names):
        raise DataError(f"{folder / STATE}: no list of files")
    return tuple(map(str, names))


def _is_plain(name: str) -> bool:
    return bool(name) and name not in {".", ".."} and not set(name) & set("/\\\0")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: cannot be read: no object")
    return values


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into an error that names the file."""
    pyarrow = need_pyarrow(path)
    try:
        yield
    except (OSError, pyarrow.ArrowException, OverflowError) as error:
        kind = "parquet" if path.suffix.lower() == PARQUET else "Arrow"
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(f"{path}: cannot be read as {kind}: {reason}") from error


def _open(path: Path) -> Any:
    """Open a parquet file, or an Arrow stream."""
    pyarrow = need_pyarrow(path)
    if path.suffix.lower() == PARQUET:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(path)
    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Yield the rows of a file, a few at a time, with these columns in this order."""
    with _reading(path), _open(path) as file:
        if path.suffix.lower() != PARQUET:
            for batch in file:
                batch.validate(full=True)  # offsets that lead out of the file would end the process
                chosen = batch.select(columns)
                for start in range(0, batch.num_rows, ROWS):
                    yield chosen.slice(start, ROWS)
            return
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            size = sum(
                group.column(i).total_uncompressed_size
                for i in range(group.num_columns)
                if group.column(i).path_in_schema.split(".")[0] in columns
            )
            if size > LARGEST_GROUP:
                raise DataError(f"{path}: row group {number} holds {size:,} bytes; at most {LARGEST_GROUP:,} are read")
        yield from file.iter_batches(batch_size=ROWS, columns=columns)


def _rows_of(path: Path, columns: Columns) -> Iterator[tuple[list[str], list[str], list[str | None]]]:
    """Yield the labels, ids and paths of images of a file, in parts."""
    types = need_pyarrow(path).types
    names = [name for name in (columns.label, columns.id) if name is not None]
    with _reading(path):
        own = columns_of(path)
    if own != columns:
        raise DataError(f"{path}: its columns are not those of the first file")
    for batch in _batches(path, [*names, columns.image]):
        image = batch.column(len(names))
        paths: list[str | None] = [None] * len(batch)
        if types.is_struct(image.type) and image.type.get_field_index("path") >= 0:
            held = image.field("path")
            if types.is_string(held.type) or types.is_large_string(held.type):
                paths = held.to_pylist()
        ids = texts(path, "id", batch.column(1)) if columns.id is not None else []
        yield texts(path, str(columns.label), batch.column(0)), ids, paths


def _named(labels: list[str], columns: Columns, place: Callable[[int], str]) -> list[str]:
    """Put names in place of numbers where there are names."""
    if columns.names is None:
        return labels
    for row, label in enumerate(labels):
        if not label.isdecimal() or int(label) >= len(columns.names):
            raise DataError(f"{place(row)}: label {label} has no name; there are {len(columns.names)}, from 0")
    return [columns.names[int(label)] for label in labels]


def _bytes_of(column: Any) -> Any:
    """Return the bytes of a column of images."""
    return column.field("bytes") if hasattr(column, "field") else column


def _is_binary(types: Any, kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_class_label(feature: object) -> bool:
    return (
        isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
        and len(set(map(str, feature["names"]))) == len(feature["names"])
    )


def _features(path: Path, schema: Any) -> dict[str, Any]:
    """Return what Hugging Face's package says of the columns, or nothing."""
    held = (schema.metadata or {}).get(b"huggingface")
    try:
        values = json.loads(held) if held is not None else _json(path.parent / "dataset_info.json")
        features = values.get("info", values)["features"]
    except (DataError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}
