"""Images and labels in tar files, as WebDataset lays them out: ``0001.jpg`` with ``0001.cls`` or ``0001.json``.

Nothing is extracted: the headers are read once, and an image is read from its place when it is decoded.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from antibackdoor.data.formats import EXTENSIONS
from antibackdoor.data.labels import checked_labels, numbered
from antibackdoor.data.listing import Listing
from antibackdoor.data.opening import Payload, Piece, open_payload, open_regular, printable
from antibackdoor.data.shards import Shards
from antibackdoor.errors import DataError
from antibackdoor.progress import Progress

__all__ = ["SUFFIX", "TarListing", "list_tars"]

SUFFIX = ".tar"
LABELS = ("cls", "json", "txt")
KEYS = ("label", "cls", "class", "class_name")  # of a JSON object
LABEL_BYTES, HEADER_BYTES = 2**20, 2**20
LONG_HEADERS = frozenset(
    (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
)


@dataclass(frozen=True, eq=False)
class TarListing(Listing):
    """N images inside tar files.

    Attributes:
        pieces: Index of the file, offset and size of each image; 3 N values.
    """

    pieces: array[int]

    def payloads(self, rows: Sequence[int]) -> Iterator[Payload]:
        """Yield what each of ``rows`` is decoded from, in that order."""
        for row in rows:
            shard, offset, size = self.pieces[3 * row : 3 * row + 3]
            yield Piece(self.root / self.files[shard], offset, size)

    def place(self, row: int) -> str:
        """Return where an image is found, for a message."""
        return str(self.root / self.ids[row])


class _Member(tarfile.TarInfo):
    """A header that is read only as far as any sensible name needs."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in LONG_HEADERS and self.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


@dataclass(eq=False)
class _Found:
    """What the files held so far."""

    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    pieces: array[int] = field(default_factory=lambda: array("q"))
    without: int = 0


def list_tars(shards: Shards, where: str, progress: Progress) -> TarListing:
    """Find the images of tar files and their labels.

    Members whose names are equal up to the first dot are one sample: one image, and its label in ``.cls`` or ``.txt``
    (a name or a whole number) or ``.json`` (an object with ``label``, ``cls``, ``class`` or ``class_name``). The id of
    an image is the path of its file, and its own inside.

    Args:
        shards: The files; not compressed.
        where: What to call them in messages.
        progress: Shows the work, and is told of samples without an image.

    Raises:
        DataError: A file that cannot be read, is cut off or holds links or devices; an image without a label, or with
            two; labels that are fractions or negative; no image.
    """
    found = _Found()
    with progress.bar("looking into tar files", len(shards.files), "files") as bar:
        for number, file in enumerate(shards.files):
            _index(shards.root / file, number, printable(file), found)
            bar.advance()
    if not found.ids:
        raise DataError(f"{where}: no images; looked for members ending in {', '.join(EXTENSIONS)}")
    if found.without:
        progress.say(f"{where}: {found.without:,} samples without an image are left out")
    if len(set(found.ids)) < len(found.ids):
        twice, _ = Counter(found.ids).most_common(1)[0]
        raise DataError(f"{where}: two members are called {twice!r}")
    labels = checked_labels(found.labels, lambda row: str(shards.root / found.ids[row]))
    classes, numbers = numbered(labels)
    return TarListing(where, shards.root, shards.files, classes, numbers, tuple(found.ids), found.pieces)


def _index(path: Path, number: int, name: str, found: _Found) -> None:
    try:
        with open_regular(path) as file:
            if file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
                raise DataError(f"{path}: compressed; images inside are read by their place, so uncompress it first")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
                sample: dict[str, tarfile.TarInfo] = {}
                key = ""
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                    if member.isdir():
                        continue
                    _check_member(path, member)
                    own, extension = _parted(member.name)
                    if own != key:
                        _take(path, number, name, sample, found)
                        key, sample = own, {}
                    if extension in sample:
                        raise DataError(f"{path}: two members are called {member.name!r}")
                    sample[extension] = member
                end = tar.offset
            file.seek(end)
            # tarfile takes the end of a file that was cut off for the end of its members.
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise DataError(f"{path}: cut off or damaged at byte {end:,}")
            _take(path, number, name, sample, found)
    except (OSError, EOFError, ValueError, RecursionError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a tar file: {reason}") from error


def _check_member(path: Path, member: tarfile.TarInfo) -> None:
    if member.issym() or member.islnk():
        raise DataError(f"{path}: {member.name!r} is a link, and links inside a tar file are not followed")
    if not member.isreg() or member.sparse is not None:
        raise DataError(f"{path}: {member.name!r} is no plain file")


def _parted(name: str) -> tuple[str, str]:
    """Return the key of a sample and the extension, parted at the first dot of the last part of a name."""
    folder, mark, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{mark}{stem}", extension.lower()


def _take(path: Path, number: int, name: str, sample: dict[str, tarfile.TarInfo], found: _Found) -> None:
    """Take over a sample: where its image lies, and its label."""
    if not sample:
        return
    images = [extension for extension in sample if extension in EXTENSIONS]
    if not images:  # such as "left.png", if it is the only one
        images = [extension for extension in sample if extension.rpartition(".")[2] in EXTENSIONS]
    if not images:
        found.without += 1
        return
    if len(images) > 1:
        names = " and ".join(sample[extension].name for extension in images)
        raise DataError(f"{path}: a sample has {len(images)} images, {names}; which one is meant?")
    image = sample[images[0]]
    found.ids.append(f"{name}/{printable(image.name)}")
    found.labels.append(_label(path, image.name, sample))
    found.pieces.extend((number, image.offset_data, image.size))


def _label(path: Path, image: str, sample: dict[str, tarfile.TarInfo]) -> str:
    member = next((sample[kind] for kind in LABELS if kind in sample), None)
    if member is None:
        raise DataError(f"{path}: {image!r} has no label; expected a member ending in {', '.join(LABELS)} beside it")
    if member.size > LABEL_BYTES:
        raise DataError(f"{path}: {member.name!r} has {member.size:,} bytes, which is no label")
    if not member.size:
        raise DataError(f"{path}: {member.name!r} is empty")
    with open_payload(Piece(path, member.offset_data, member.size)) as file:
        try:
            text = file.read().decode("utf-8-sig")
            if not member.name.lower().endswith(".json"):
                return text
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: {member.name!r} cannot be read: {error}") from error
    given = next((values[key] for key in KEYS if key in values), None) if isinstance(values, dict) else values
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise DataError(
            f"{path}: {member.name!r} holds no label; expected one of {', '.join(KEYS)}, a name or a number"
        )
    return str(given)
