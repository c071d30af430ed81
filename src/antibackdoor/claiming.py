"""Who may write into a folder: one process, and never over files that are not a run of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from antibackdoor.errors import ConfigError, RunExistsError, StorageError
from antibackdoor.files import clear_partials, locked, writing
from antibackdoor.serialising import read_json, write_json
from antibackdoor.storage import CHECKPOINTS, CONFIG, RECORD, RUN_FILES
from antibackdoor.training import Checkpoints
from antibackdoor.types import Json

__all__ = ["claim", "hold", "refuse_other_run"]

_LOCK = ".lock"
_SETTINGS = frozenset({"data", "defence", "model", "seed", "train"})  # the settings of a run have at least these


def claim(out: Path, config: dict[str, Json], *, resume: bool, overwrite: bool) -> None:
    """Make the folder of a run ready.

    Args:
        out: The folder; made if it is not there. Files in it that are not a run's are left alone.
        config: The resolved configuration; a resumed run must have the same.
        resume: Continue what is there.
        overwrite: Remove the run that is there.

    Raises:
        RunExistsError: It holds a run, and neither was asked for; or files of those names that are not a run's.
        StorageError: The run to resume had another configuration, or the folder cannot be written.
    """
    held = refuse_other_run(out, resume=resume, overwrite=overwrite)
    for folder in (out, out / CHECKPOINTS):
        clear_partials(folder, older_than=0)
    if held and overwrite:
        with writing(out):
            # The record first and the settings last: a kill in between leaves no finished run, but one of ours.
            for name in sorted(RUN_FILES, key=lambda name: (name == CONFIG, name != RECORD)):
                if (out / name).is_file():
                    (out / name).unlink()
                if name == RECORD:
                    Checkpoints(out / CHECKPOINTS, resume=False).clear()
    elif held:
        before = read_json(out / CONFIG)
        changed = [key for key in {*before, *config} if before.get(key) != config.get(key)]
        if changed:
            names = ", ".join(sorted(changed))
            raise StorageError(
                f"by {out / CONFIG} the run was started with other settings ({names} differ); resume with the same, or "
                "give --overwrite"
            )
    write_json(out / CONFIG, config)


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Hold the folder of a run for this process alone, until the end of the block or of the process.

    Raises:
        RunExistsError: Another process holds it.
        StorageError: It cannot be written.
    """
    busy = f"{out}: another process{{by}} writes a run there; wait for its end, or give another --out"
    with locked(out / _LOCK, busy=busy, leave=False):
        yield


def refuse_other_run(out: Path, *, resume: bool, overwrite: bool) -> list[str]:
    """Return which files of a run the folder holds, if there may be any.

    Raises:
        ConfigError: Both to resume and to overwrite was asked for.
        RunExistsError: There are, and neither was asked for; or they are to be overwritten, but are not a run of ours.
        StorageError: It is a file.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if out.exists() and not out.is_dir():
        raise StorageError(f"cannot write {out}: it is a file; --out is a folder")
    held = [name for name in (*RUN_FILES, CHECKPOINTS) if (out / name).exists()]
    if held and not resume and not overwrite:
        raise RunExistsError(
            f"{out} holds another run ({', '.join(held[:3])}); give --resume to continue it, --overwrite to replace "
            "it, or another --out"
        )
    if held and overwrite and not _holds_our_run(out):
        raise RunExistsError(
            f"{out} holds {', '.join(held[:3])}, but no run that antibackdoor wrote, so --overwrite leaves it as it "
            "is; give another --out"
        )
    return held


def _holds_our_run(out: Path) -> bool:
    """Say whether a folder holds the record of a finished run, or the settings of one that was interrupted."""
    for name in (RECORD, CONFIG):
        with contextlib.suppress(StorageError):
            values = read_json(out / name)
            settings = values.get("config") if name == RECORD else values
            if isinstance(settings, dict) and settings.keys() >= _SETTINGS:
                return True
    return False
