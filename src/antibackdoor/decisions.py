"""What a person decided about images: ``decisions.csv``, written by ``review``, by hand or by another tool.

One row an image, with the columns ``id,decision,label,who,when``. The last row of an id is the one that counts, so that
a tool may add to the file and a person may change their mind; docs/decisions.md has the format.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from antibackdoor.csvs import as_text, lines_of, read_back
from antibackdoor.errors import DataError, StorageError, UnknownNameError
from antibackdoor.files import atomic_write_bytes, clear_partials, locked

__all__ = [
    "COLUMNS",
    "DECISIONS",
    "Decided",
    "Decision",
    "append_decisions",
    "check_decisions",
    "decisions_digest",
    "encode_decisions",
    "parse_decisions",
    "read_decisions",
    "write_decisions",
]

Decided: TypeAlias = Literal["keep", "drop", "relabel", "unsure"]
DECISIONS: tuple[Decided, ...] = get_args(Decided)
COLUMNS = ("id", "decision", "label", "who", "when")
_NEEDED = ("id", "decision")
_DELIMITERS = ",;\t"  # a spreadsheet of another country writes the second, a paste from one the third


@dataclass(frozen=True)
class Decision:
    """What was decided about one image.

    Attributes:
        id: The image, as it is called in ``suspects.csv``.
        decision: "keep": it is as it should be, train on it and do not flag it again. "drop": leave it out. "relabel":
            train on it under another label. "unsure": nobody decided; the defence does.
        label: The class to train it under, where it is relabelled; otherwise empty, or the class that it has.
        who: Who decided; may be empty.
        when: When, such as "2026-11-30T15:40:00+00:00"; may be empty.

    Raises:
        DataError: No such decision, no id, or a relabelling without a label.
    """

    id: str
    decision: Decided
    label: str = ""
    who: str = ""
    when: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            raise DataError("a decision has no id")
        if self.decision not in DECISIONS:
            raise DataError(str(UnknownNameError("decision", self.decision, DECISIONS)))
        if self.decision == "relabel" and not self.label:
            raise DataError(f"{self.id!r} is to be relabelled, but no label is given")


def read_decisions(path: Path) -> list[Decision]:
    """Read a file of decisions.

    Args:
        path: A CSV file in UTF-8 whose first line names its columns, in any order; ``id`` and ``decision`` must be
            among them, others than ``COLUMNS`` are not looked at. Semicolons or tabs may stand for the commas.

    Returns:
        One decision an id, the last of its rows, in the order of those; a decision may be in capitals.

    Raises:
        StorageError: It is not there or cannot be read.
        DataError: It is no such CSV, or a row is not a decision; the message names the line.
    """
    with _reading(path):
        content = path.read_bytes()
    return parse_decisions(path, content)


def parse_decisions(path: Path, content: bytes) -> list[Decision]:
    """Return the decisions in what was read of a file; see :func:`read_decisions`.

    Args:
        path: The file, for messages.
        content: What is in it.

    Raises:
        DataError: It is no such CSV, or a row is not a decision; the message names the line.
    """
    with _reading(path):
        columns, rows = _parse(path, content.decode("utf-8-sig"))
    place = {name: columns.index(name) for name in COLUMNS if name in columns}
    found: dict[str, Decision] = {}
    for line, row in rows:
        if len(row) > len(columns):
            raise DataError(f"{path}, line {line}: {len(row)} cells in {len(columns)} columns; is a comma not quoted?")
        values = {name: read_back(row[at]) if at < len(row) else "" for name, at in place.items()}
        values["decision"] = values["decision"].strip().lower()
        try:
            decision = Decision(**values)  # type: ignore[arg-type]
        except DataError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
        found.pop(decision.id, None)
        found[decision.id] = decision
    return list(found.values())


def write_decisions(path: Path, decisions: Iterable[Decision]) -> None:
    """Write a file of decisions anew, whole or not at all.

    Args:
        path: The file, replaced if it is there.
        decisions: In the order in which they are to stand there.

    Raises:
        StorageError: It cannot be written.
    """
    content = encode_decisions(decisions)
    with locked(_lock(path), leave=False):
        clear_partials(path.parent, older_than=0, of=path.name)  # of a kill
        atomic_write_bytes(path, content)


def encode_decisions(decisions: Iterable[Decision]) -> bytes:
    """Return a file of decisions as bytes."""
    return _encode(lines_of([COLUMNS, *(_cells(one, COLUMNS) for one in decisions)]))


def append_decisions(path: Path, decisions: Sequence[Decision]) -> None:
    """Add decisions at the end of a file, and force them to the disk; makes the file if it is not there.

    All of them are written at once, so that a kill leaves all or none. The columns and the delimiter of a file written
    by hand stay; one that has not all of ``COLUMNS`` is written anew with them.

    Args:
        path: The file.
        decisions: In order; a later one of the same image counts.

    Raises:
        StorageError: It cannot be read or written.
        DataError: What is there is no file of decisions.
    """
    if not decisions:
        return
    with locked(_lock(path), leave=False):
        clear_partials(path.parent, older_than=0, of=path.name)  # of a kill
        if not path.exists():
            atomic_write_bytes(path, encode_decisions(decisions))
            return
        first, ended = _ends(path)
        columns, _ = _parse(path, first)
        if not set(COLUMNS) <= set(columns):
            atomic_write_bytes(path, encode_decisions([*read_decisions(path), *decisions]))
            return
        added = lines_of((_cells(one, columns) for one in decisions), delimiter=_delimiter(first))
        _append(path, _encode(added if ended else f"\n{added}"))


def check_decisions(
    decisions: Sequence[Decision], ids: Sequence[str], labels: Sequence[str], path: Path
) -> list[Decision]:
    """Check that decisions are of the images of a set.

    Args:
        decisions: What :func:`read_decisions` returned.
        ids: N names of images.
        labels: The class name of each, (N,); all classes of the set are among them.
        path: The file, for messages.

    Returns:
        Those on images that are not in the set, all of them to drop or unsure: what was dropped before may be gone.

    Raises:
        DataError: An image to keep or to relabel that the set does not hold, none at all that it holds, a class that it
            does not have, or an image that is to be kept under another label than it has.
    """
    own, classes = dict(zip(ids, labels, strict=True)), set(labels)
    absent = [one for one in decisions if one.id not in own]
    needed = absent if len(absent) == len(decisions) else [one for one in absent if one.decision in ("keep", "relabel")]
    if needed:
        near = UnknownNameError("id", needed[0].id, _like(needed[0].id, ids)).nearest
        hint = f" Did you mean {near!r}?" if near else ""
        raise DataError(
            f"{path}: no image of the set has the id {needed[0].id!r} ({len(absent):,} of {len(decisions):,} decisions "
            f"name none).{hint} Ids are those of suspects.csv"
        )
    for one in decisions:
        if one.decision == "relabel" and one.label not in classes:
            raise DataError(f"{path}: {one.id!r}: {UnknownNameError('label', one.label, classes)}")
        if one.decision == "keep" and one.label not in ("", own[one.id]):
            raise DataError(
                f"{path}: {one.id!r} is of class {own[one.id]!r} and to be kept as {one.label!r}; write relabel, or "
                "leave the label empty"
            )
    return absent


def decisions_digest(decisions: Iterable[Decision]) -> str:
    """Return the SHA-256 of what was decided, whoever did and whenever, in whatever order."""
    rows = sorted((one.id, one.decision, one.label if one.decision == "relabel" else "") for one in decisions)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _like(name: str, ids: Sequence[str]) -> list[str]:
    """Return ids that may have been meant: those with the same file name, else the first few."""
    last = name.rsplit("/", 1)[-1]
    return [one for one in ids if one.rsplit("/", 1)[-1] == last][:100] or list(ids[:100])


def _cells(one: Decision, columns: Sequence[str]) -> list[str]:
    return [as_text(getattr(one, name)) if name in COLUMNS else "" for name in columns]


def _encode(text: str) -> bytes:
    return text.encode("utf-8", errors="backslashreplace")


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _ends(path: Path) -> tuple[str, bool]:
    """Return the first line, and whether the last one is ended; the rest may be long."""
    with _reading(path), path.open("rb") as file:
        first = file.readline().decode("utf-8-sig")
        file.seek(-1 if first else 0, os.SEEK_END)
        return first, file.read(1) in (b"\n", b"\r")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StorageError(f"no file of decisions at {path}") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from None


def _delimiter(text: str) -> str:
    first = text.split("\n", 1)[0]
    return max(_DELIMITERS, key=first.count)


def _parse(path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the names of the columns, and the rows that are not empty, each with the number of its last line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    missing = [name for name in _NEEDED if name not in columns]
    if missing or len(set(columns)) != len(columns):
        shown = ", ".join(columns[:8]) or "nothing"
        reason = f"has no column {missing[0]!r}" if missing else "has a column twice"
        raise DataError(f"{path} {reason}; its first line is to be {','.join(COLUMNS)}, and is {shown}")
    return columns, rows


def _append(path: Path, content: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            size = os.fstat(handle).st_size
            try:
                if os.write(handle, content) != len(content):  # a full disk takes a part
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)  # Who is told that nothing was saved must not find it there.
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None
