"""Cut off and flip bytes in every file of a run, and read it: an error that names the file, or the same as before."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end import FAST, invoke, write_npz

from antibackdoor import serialising, storage
from antibackdoor.claiming import claim
from antibackdoor.errors import StorageError
from antibackdoor.training import Checkpoints
from antibackdoor.verifying import verify_run


@dataclass
class Row:
    """What came of one file."""

    name: str
    cut: int = 0
    cut_named: int = 0
    flipped: int = 0
    flipped_named: int = 0
    faults: list[str] = field(default_factory=list)


def write_run(folder: Path) -> Path:
    """Train a tiny run, and return its folder."""
    done = invoke("train", write_npz(folder / "d.npz", 8), "--out", folder / "run", *FAST, "--quiet")
    assert done.code == 0, done
    return folder / "run"


def plain(value: Any) -> Any:
    """Make what a reader returned comparable."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.numpy().tobytes() if hasattr(value, "numpy") else value


def readers(run: Path) -> dict[str, Callable[[], Any]]:
    """Everything that reads a file of a run."""
    settings = serialising.read_json(run / "config.json")
    phases = [path.stem for path in sorted((run / "checkpoints").glob("*.safetensors"))]
    checkpoints = Checkpoints(run / "checkpoints", resume=True, writes=False)

    def network() -> dict[str, Any]:
        return dict(storage.load_model(run, storage.read_record(run)).state_dict())

    def resume() -> None:
        claim(run, settings, resume=True, overwrite=False)

    return {
        "load_run": lambda: storage.load_run(run),
        "load_model": network,
        "resume": resume,
        **{f"checkpoint {phase}": lambda phase=phase: checkpoints.load(phase) for phase in phases},
    }


def complaints(run: Path, path: Path, made: dict[str, Callable[[], Any]], expected: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong in how a damaged file is read."""
    try:
        named = [entry.problem for entry in verify_run(run) if entry.problem and str(path) in entry.problem]
    except StorageError as error:
        named = [str(error)] if str(path) in str(error) else []
    if not named:
        yield "verify does not name it"
    elif any("\n" in problem for problem in named):
        yield "verify takes more than one line"
    for name, read in made.items():
        try:
            found = plain(read())
        except StorageError as error:
            if str(path) not in str(error):
                yield f"{name} says {error}"
        except Exception as error:  # noqa: BLE001 - this is what must never happen
            yield f"{name} ends with {type(error).__name__}: {error}"
        else:
            if found != expected[name]:
                yield f"{name} gives another result without a word"


def damage_run(run: Path, *, lengths: int, flips: int, seed: int = 0) -> Iterator[Row]:
    """Damage every file in turn, and put it back.

    Args:
        run: A finished run.
        lengths: How many lengths to cut a file off at, evenly spread from 0.
        flips: How many single bytes to flip one bit of, at random.
        seed: Of these places.
    """
    chance = random.Random(seed)
    made = readers(run)
    expected = {name: plain(read()) for name, read in made.items()}
    files = sorted(path for path in run.rglob("*") if path.is_file())
    for path in files:
        row, whole = Row(str(path.relative_to(run))), path.read_bytes()
        for place in range(lengths):
            size = len(whole) * place // lengths
            path.write_bytes(whole[:size])
            found = [f"{row.name} cut off at {size}: {text}" for text in complaints(run, path, made, expected)]
            row.cut, row.cut_named = row.cut + 1, row.cut_named + (not found)
            row.faults += found
        for _ in range(flips):
            place, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            found = [f"{row.name}, bit {bit} of byte {place}: {text}" for text in complaints(run, path, made, expected)]
            row.flipped, row.flipped_named = row.flipped + 1, row.flipped_named + (not found)
            row.faults += found
        path.write_bytes(whole)
        yield row
