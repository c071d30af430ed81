"""Is every file of a run what was written? Reads them all, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from antibackdoor import storage
from antibackdoor.errors import StorageError
from antibackdoor.files import CHECKSUMS, read_checked, read_checksums
from antibackdoor.training import Checkpoints

__all__ = ["Checked", "verify_run"]


@dataclass(frozen=True)
class Checked:
    """One file of a run.

    Attributes:
        name: Its path below the run.
        problem: What is wrong with it, with its path, or None where it is what was written.
    """

    name: str
    problem: str | None


def verify_run(run: Path) -> list[Checked]:
    """Compare every file of a run with its checksum, and read what the commands read.

    Args:
        run: A run folder, of a finished run or of one that was interrupted.

    Returns:
        One entry a file: those that ``checksums.sha256`` names, itself, and the checkpoints, which carry their own.

    Raises:
        StorageError: It is no folder of a run, of version 0.1 (whose runs have no checksums), or its
            ``checksums.sha256`` is damaged.
    """
    if not run.is_dir():
        raise StorageError(f"no run folder at {run}")
    checkpoints = list(_checkpoints(run / "checkpoints"))
    finished = (run / "run.json").exists()
    checksums = read_checksums(run) if finished else None
    if not finished and not checkpoints:
        raise StorageError(f"{run} holds no run (no run.json and no checkpoints)")
    if finished and checksums is None:
        storage.read_record(run)  # says what is wrong with it, where something is
        raise StorageError(f"{run} is a run of version 0.1, which wrote no checksums; there is nothing to compare with")
    found = [] if checksums is None else [Checked(CHECKSUMS, None)]
    for name in sorted(checksums or ()):
        found.append(Checked(name, _problem(run / name, checksums or {})))
    if checksums is not None and "run.json" not in checksums:
        found.append(Checked("run.json", f"{run / 'run.json'} has no checksum in {CHECKSUMS}"))
    if checksums is not None and all(entry.problem is None for entry in found):
        found += _unreadable(run)
    return found + checkpoints


def _problem(path: Path, checksums: dict[str, str]) -> str | None:
    try:
        read_checked(path, checksums)
    except StorageError as error:
        return str(error)
    return None


def _unreadable(run: Path) -> list[Checked]:
    """Say if what was written, and is so still, cannot be read all the same: another version, or a fault of ours."""
    try:
        storage.load_run(run)
    except StorageError as error:
        return [Checked("(the run as a whole)", str(error))]
    return []


def _checkpoints(folder: Path) -> Iterator[Checked]:
    checkpoints = Checkpoints(folder, resume=True, writes=False)
    for path in sorted(folder.glob("*.safetensors")):
        problem = None
        try:
            checkpoints.load(path.name.removesuffix(".safetensors"))
        except StorageError as error:
            problem = str(error)
        yield Checked(f"{folder.name}/{path.name}", problem)
