"""What a run leaves of a set: the cleaned images and the quarantine as folders, or the list alone."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from antibackdoor.config import RunConfig
from antibackdoor.csvs import as_text, lines_of
from antibackdoor.data.files_of import files_of
from antibackdoor.data.opening import printable
from antibackdoor.data.shards import is_pattern
from antibackdoor.deciding import follow
from antibackdoor.decisions import Decision, check_decisions, read_decisions
from antibackdoor.errors import ConfigError, DataError, RunExistsError, StorageError
from antibackdoor.exporting import Placer, write_png
from antibackdoor.extras import need
from antibackdoor.files import atomic_write_bytes, writing
from antibackdoor.imagelist import COLUMNS, ImageList
from antibackdoor.naming import check_folder_names, names_below
from antibackdoor.pipeline import digest, limited, load_data
from antibackdoor.progress import SILENT, Progress
from antibackdoor.review.pixels import png
from antibackdoor.saved import save_to_disk
from antibackdoor.seeds import Seeds
from antibackdoor.serialising import read_json, write_json, write_text
from antibackdoor.storage import CONFIG, DECIDED, load_decided, load_run
from antibackdoor.stored import StoredRun
from antibackdoor.types import ImageSet

__all__ = ["CLEAN", "FORMATS", "LIST", "QUARANTINE", "TABLE", "Format", "export", "list_images"]

Format: TypeAlias = Literal["folder", "hf", "csv", "parquet", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
_FOLDERS: tuple[Format, ...] = ("folder", "hf")
CLEAN, QUARANTINE, LIST, TABLE = "clean", "quarantine", "images.csv", "clean.csv"
_GIVEN, _PARTIAL = "(given in Python", ".partial"


def list_images(
    run: StoredRun,
    decisions: Sequence[Decision] = (),
    *,
    before: Sequence[Decision] = (),
    where: Path = Path("decisions"),
) -> ImageList:
    """Return the images of a run with what the defence and a person said of them; ``file`` is empty.

    Args:
        run: The run.
        decisions: What a person decided, one an image; goes before what the defence flagged.
        before: What had been decided before the run; images that were dropped then, which it did not look at, stand
            after its own, without a score.
        where: The file of the decisions, for messages.

    Raises:
        DataError: A decision on an image or a class that the run does not have.
    """
    known = set(run.ids)
    dropped = [one for one in before if one.id not in known and one.label in run.classes]
    ids = (*run.ids, *(one.id for one in dropped))
    labels = [*(run.classes[label] for label in run.labels.tolist()), *(one.label for one in dropped)]
    check_decisions(decisions, ids, labels, where)
    made = {one.id: one for one in (*before, *decisions)}
    suspect, decided = [*run.flagged.tolist(), *(True for _ in dropped)], [""] * len(labels)
    verdicts = [*(run.class_verdicts[label] for label in run.labels.tolist()), *("" for _ in dropped)]
    scores = [*run.scores.tolist(), *(math.nan for _ in dropped)]
    for row, name in enumerate(ids):
        one = made.get(name)
        if one is None:
            continue
        decided[row] = one.decision
        if one.decision != "unsure":
            suspect[row] = one.decision == "drop"
        if one.decision == "relabel":
            labels[row] = one.label
    return ImageList(ids, [""] * len(labels), labels, scores, suspect, verdicts, decided)


def export(
    run: Path,
    out: Path,
    to: Format = "folder",
    *,
    source: str | None = None,
    decisions: Path | None = None,
    copy: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ImageList:
    """Write what a run leaves of its set.

    "folder" writes ``out/clean`` and ``out/quarantine``, in each of which an image of a folder lies under its id, the
    list ``out/images.csv``, and ``out/clean.csv``, by which the cleaned set is read under the ids of the source; "hf"
    writes ``out/clean`` and ``out/quarantine`` as ``datasets.load_from_disk`` reads them, and the list; the others
    write the list alone. Images that are no files are written as PNG files, as the run saw them.

    Args:
        run: A finished run folder.
        out: A folder for "folder" and "hf", otherwise a file.
        to: One of ``FORMATS``.
        source: Where the images are now; as the run was told by default.
        decisions: File of what a person decided, which goes before what the defence flagged.
        copy: Copy the files instead of linking to them.
        overwrite: Replace what an export before left there.
        progress: Shows the work.

    Returns:
        The list. Its files are paths below ``out``, or, of a list alone, those of the source.

    Raises:
        StorageError: No finished run, a source that is not there, or a file that cannot be written.
        DataError: A source that is not what the run looked at, or decisions that do not belong to it.
        ConfigError: The run has no source of files, or a package is missing.
        RunExistsError: ``out`` holds something.
    """
    stored = load_run(run)
    made = [] if decisions is None else read_decisions(decisions)
    images = list_images(stored, made, before=load_decided(run), where=decisions or Path())
    given = source or _source_of(stored)
    _refuse(out, to, None if given is None else Path(given), overwrite=overwrite)
    files = None if given is None else _files(run, stored, given)
    if files is not None:
        images = images.of([name in files for name in images.id])
    if to not in _FOLDERS:
        if files is not None:
            images = replace(images, file=[printable(str(files[name])) for name in images.id])
        _write_list(out, to, images, stored)
        return images
    source = _on_disk(run, stored, given)
    if to == "hf":
        need("datasets", "hub")
    data = _same_images(run, stored, source, progress, is_file=files is not None)
    if to == "hf":
        return _write_saved(out, images, stored, data, files, progress)
    return _write_folder(out, images, stored, data, files, copy=copy, progress=progress)


def _source_of(stored: StoredRun) -> str | None:
    """Return what the run was told to read; None where it was given its images in Python."""
    data = stored.record.config.get("data")
    given = str(data.get("source")) if isinstance(data, Mapping) else ""
    return None if given.startswith(_GIVEN) else given


def _on_disk(run: Path, stored: StoredRun, given: str | None) -> str:
    """Return where the images of a run are, or raise ConfigError where they never were files as the run saw them."""
    if given is None:
        raise ConfigError(
            f"{run} was given its images in Python, so there are no files to hand on; --data says where the same "
            "images lie, or take another format than folder and hf"
        )
    if stored.record.config.get("attack") is not None:
        raise ConfigError(f"{run} planted an attack in memory; `antibackdoor poison` writes such a set as files")
    return given


def _files(run: Path, stored: StoredRun, given: str) -> dict[str, Path] | None:
    """Return the file of each image by its id, None where the images are no files."""
    named = given == "embedded" or given.startswith("hub:") or is_pattern(given)
    if not named and not Path(given).exists():
        raise StorageError(
            f"{run} was made of the images in {given}, which is not there (or not seen from this folder); --data says "
            "where they are now"
        )
    files = None if named else files_of(given)
    if files is None:
        return None
    gone = [name for name in stored.ids if name not in files]
    if gone:
        raise DataError(
            f"{given}: {len(gone):,} of {len(stored.ids):,} images that {run} looked at are not there, first "
            f"{gone[0]!r}; scan the set again, or say with --data where it is"
        )
    return files


def _same_images(run: Path, stored: StoredRun, given: str, progress: Progress, *, is_file: bool) -> ImageSet:
    """Read the source again and compare: what was not looked at must not be handed on as clean."""
    section = stored.record.config.get("data")
    if not isinstance(section, Mapping):
        raise StorageError(f"{run} does not say what it was made of")
    values = {**stored.record.config, "data": {**section, "source": given, "test": None}}
    config = RunConfig.parse(values)
    whole = limited(load_data(config.data, progress), config.data, Seeds(config.seed)).train
    if not is_file:
        whole = replace(whole, ids=_named_as(stored.ids, whole.ids))
    data = whole
    if before := load_decided(run):
        data = follow(data, before, run / DECIDED).data
    seen = read_json(run / CONFIG).get("data content") if (run / CONFIG).is_file() else None
    other = data.ids != stored.ids
    if other or (seen is not None and digest(data) != seen):
        what = "holds other images than" if other else "holds other pixels or labels than"
        raise DataError(f"{given} {what} {run} looked at; scan it again before it is handed on as clean")
    return whole


def _named_as(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Return other names as if they began as these do, where all begin alike: with the name of a source that moved."""
    starts, theirs = ({name.rpartition("/")[0] for name in those} for those in (names, others))
    if len(starts) != 1 or len(theirs) != 1 or starts == theirs:
        return tuple(others)
    start = starts.pop()
    return tuple(f"{start}/{name.rpartition('/')[2]}" for name in others)


def _refuse(out: Path, to: Format, source: Path | None, *, overwrite: bool) -> None:
    if to not in _FOLDERS:
        if out.is_dir():
            raise StorageError(f"{out} is a folder; --to {to} writes one file")
        if out.exists() and not overwrite:
            raise RunExistsError(f"{out} is there already; give --overwrite to replace it, or another name")
        return
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; --to {to} writes a folder")
    if source is not None and source.is_dir():
        read, written = source.resolve(), out.resolve()
        if written == read or read in written.parents or written in read.parents:
            raise RunExistsError(f"{out} would be written over or into the images of {source}; give another folder")
    held = [path.name for path in out.iterdir() if path.name != _PARTIAL] if out.exists() else []
    if held and not overwrite:
        raise RunExistsError(f"{out} is not empty; give --overwrite to replace the export in it, or another folder")
    if held and not (set(held) <= {CLEAN, QUARANTINE, LIST, TABLE} and _is_our_list(out / LIST)):
        raise RunExistsError(f"{out} holds more than an export of ours, so --overwrite leaves it; give another folder")


def _is_our_list(path: Path) -> bool:
    with contextlib.suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8") as file:
        return file.readline().rstrip("\n") == ",".join(COLUMNS)
    return False


def _write_list(out: Path, to: Format, images: ImageList, stored: StoredRun) -> None:
    if to == "csv":
        write_text(out, images.csv())
    elif to == "parquet":
        atomic_write_bytes(out, images.parquet())
    else:
        write_json(
            out, {"verdict": stored.record.verdict, "data": stored.record.data.get("name"), "images": images.rows()}
        )


def _write_folder(
    out: Path,
    images: ImageList,
    stored: StoredRun,
    data: ImageSet,
    files: Mapping[str, Path] | None,
    *,
    copy: bool,
    progress: Progress,
) -> ImageList:
    check_folder_names(stored.classes)
    row_of = {name: row for row, name in enumerate(data.ids)}
    images = images.of([name in row_of for name in images.id])
    own = [data.classes[int(data.labels[row_of[name]])] for name in images.id]
    ids = images.id if files is None else [_ended(name, files[name].suffix) for name in images.id]
    names = names_below(ids, own, images.label, suffix=None if files else ".png", split=True)
    placed = [f"{QUARANTINE if left else CLEAN}/{name}" for name, left in zip(names, images.suspect, strict=True)]
    listed = replace(images, file=placed)
    with _exchanging(out) as partial:
        for name in (CLEAN, QUARANTINE):
            (partial / name).mkdir(parents=True)
        place = Placer(copy, progress)
        with progress.bar("writing", len(placed), "images") as bar:
            for row, name in enumerate(placed):
                if files is None:
                    write_png(partial / name, data.images[row_of[images.id[row]]])
                else:
                    place(files[images.id[row]], partial / name)
                bar.advance()
        write_text(partial / LIST, listed.csv())
        write_text(partial / TABLE, _table(listed))
    return listed


def _write_saved(
    out: Path,
    images: ImageList,
    stored: StoredRun,
    data: ImageSet,
    files: Mapping[str, Path] | None,
    progress: Progress,
) -> ImageList:
    row_of = {name: row for row, name in enumerate(data.ids)}
    images = images.of([name in row_of for name in images.id])
    listed = replace(images, file=[QUARANTINE if left else CLEAN for left in images.suspect])
    with _exchanging(out) as partial, progress.bar("writing", len(images), "images") as bar:
        for part in (CLEAN, QUARANTINE):
            own = listed.of([name == part for name in listed.file])

            def content(row: int, ids: Sequence[str] = own.id) -> bytes:
                return png(data.images[row_of[ids[row]]].numpy()) if files is None else files[ids[row]].read_bytes()

            def name(row: int, ids: Sequence[str] = own.id) -> str:
                return f"{ids[row].rpartition('/')[2]}.png" if files is None else files[ids[row]].name

            save_to_disk(partial / part, own, content, stored.classes, name=name, step=bar.advance)
        write_text(partial / LIST, listed.csv())
    return listed


@contextlib.contextmanager
def _exchanging(out: Path) -> Iterator[Path]:
    """Give a folder to write an export into, which takes the place of the one in ``out`` when the block ends well."""
    partial = out / _PARTIAL
    with writing(out):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            yield partial
            _exchange(out, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _ended(name: str, ending: str) -> str:
    """Return a name of an image, with the ending of its file if it has another."""
    return name if name.lower().endswith(ending.lower()) else name + ending


def _table(images: ImageList) -> str:
    """Return the cleaned set as a table of paths and labels, which is read under the ids of the source."""
    rows = zip(images.file, images.label, images.id, images.suspect, strict=True)
    kept = [(as_text(file), as_text(label), as_text(name)) for file, label, name, left_out in rows if not left_out]
    return lines_of([("path", "label", "id"), *kept])


def _exchange(out: Path, partial: Path) -> None:
    """Move the old folders out and the new ones in; the list is there all the while, by which an export is known."""
    old = partial / "old"
    old.mkdir()
    for name in (CLEAN, QUARANTINE):
        if (out / name).exists():
            os.replace(out / name, old / name)
    for name in (LIST, TABLE, QUARANTINE, CLEAN):
        if (partial / name).exists():
            os.replace(partial / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)
