"""The work of one cell, in whatever process: take what is shared or make it, run, measure, compare with the control."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from antibackdoor.benchmark.cells import Cell
from antibackdoor.benchmark.folder import CELL_FORMAT, Record
from antibackdoor.benchmark.shared import (
    ArtifactStore,
    fingerprint,
    pack_planted,
    pack_weights,
    unpack_planted,
    unpack_weights,
)
from antibackdoor.config import DataConfig
from antibackdoor.data.sources import Loaded
from antibackdoor.errors import DataError
from antibackdoor.evaluation import evaluate
from antibackdoor.pipeline import Planted, Result, limited, load_data, network_of, plant, run
from antibackdoor.plugins import PluginFile, load_all
from antibackdoor.progress import SILENT
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime
from antibackdoor.types import Json, PoisonedSet

__all__ = ["SHARES", "Task", "curves_of", "failed", "forget_data", "perform"]

SHARES = (0.01, 0.05, 0.1, 0.2)
_FRAMES = 3
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Task:
    """A piece of work for one process.

    Attributes:
        cell: The cell to measure, or one whose poisoned set is to be made.
        kind: "measure" gives a record; "plant" makes the poisoned set alone.
        threads: CPU threads to compute with. Sums are rounded in another order with another number.
        device: In place of the configuration's, which of several cards to use; None keeps it.
        plugins: Files of attacks and defences from outside the package, for processes that have not loaded them.
    """

    cell: Cell
    kind: Literal["measure", "plant"]
    threads: int = 1
    device: str | None = None
    plugins: tuple[PluginFile, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of what is shared that it reads."""
        poison = self.cell.shared_poison
        names = (poison, None if self.cell.is_control else self.cell.shared_control)
        return tuple(name for name in names if name is not None) if self.kind == "measure" else ()


def perform(task: Task, store: ArtifactStore) -> Record | None:
    """Do a task; what goes wrong becomes a record.

    Args:
        task: The work.
        store: Where shared things are read from and kept.

    Returns:
        The record of a measured cell, or of a failure; None for a poisoned set that was made.
    """
    cell = task.cell
    if task.device is not None:
        cell = dataclasses.replace(cell, config=cell.config.model_copy(update={"device": task.device}))
    with _threads(task.threads):
        try:
            load_all(task.plugins)
            drawn = _drawn(cell.config.data, cell.seed)
            if task.kind == "plant":
                _plant(cell, drawn, store)
                return None
            return _measure(cell, drawn, store)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a cell, the others go on
            return failed(task.cell, type(error).__name__, str(error), _where(error))
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # Other processes work on the same card.


def failed(cell: Cell, kind: str, message: str, where: Sequence[str] = ()) -> Record:
    """Return the record of a cell that could not be measured.

    Args:
        cell: The cell.
        kind: Class of the error.
        message: What it said; becomes one line.
        where: The places in the code that it came through, the innermost last; none where nobody knows.
    """
    return {
        **_head(cell),
        "status": "failed",
        "error": {"type": kind, "message": " ".join(message.split()) or "no message", "where": list(where)},
        **dict.fromkeys(
            ("metrics", "control", "verdict", "train_seconds", "updates", "versions", "device", "curves", "data")
        ),
        "evidence": [],
        "seconds": {},
    }


def _where(error: BaseException) -> list[str]:
    """Return the last frames of an error, the innermost last, without the folders of this machine."""
    return [
        f"{_place(Path(frame.filename))}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__, limit=-_FRAMES)
    ]


def _place(file: Path) -> str:
    return file.relative_to(_PACKAGE).as_posix() if file.is_relative_to(_PACKAGE) else file.name


def forget_data() -> None:
    """Drop the images that this process keeps between cells."""
    _full.cache_clear()
    _drawn.cache_clear()


@dataclass(frozen=True, eq=False)
class _Drawn:
    loaded: Loaded
    fingerprint: str


@lru_cache(maxsize=2)
def _full(data: DataConfig) -> Loaded:
    return load_data(data, SILENT)


@lru_cache(maxsize=2)
def _drawn(data: DataConfig, seed: int) -> _Drawn:
    loaded = limited(_full(data), data, Seeds(seed))
    if loaded.test is None:
        raise DataError(f"{data.source}: no test images, so nothing can be measured; give the data set `test`")
    return _Drawn(loaded, fingerprint(loaded))


def _plant(cell: Cell, drawn: _Drawn, store: ArtifactStore) -> Planted | None:
    """Return the poisoned set of a cell: the one that is kept, or a new one, which is kept then."""
    name, config = cell.shared_poison, cell.config
    if name is None or config.attack is None:
        return None
    planted = unpack_planted(store.get(name), config.attack.name, drawn.loaded, drawn.fingerprint)
    if planted is None:
        runtime = Runtime.create(config.device, config.train.precision, config.train.compile)
        build_model, _ = network_of(config.model_copy(update={"weights": None}), drawn.loaded.train)
        planted = plant(config.attack, drawn.loaded, build_model, runtime, Seeds(cell.seed))
        if planted is not None:
            store.put(name, pack_planted(planted, drawn.loaded, drawn.fingerprint))
    return planted


def _measure(cell: Cell, drawn: _Drawn, store: ArtifactStore) -> Record:
    planted = _plant(cell, drawn, store)
    # Before the cell's own training, which would be lost with a control that cannot be made.
    control = None if cell.is_control else _control(cell, drawn, planted, store)
    result = run(cell.config, data=drawn.loaded, planted=planted)
    record = result.record
    if control is None:
        control = {"ca": record.metrics.ca, "asr": None, "ra": None}
        if result.model is not None:
            store.put(cell.shared_control, pack_weights(result.model, drawn.fingerprint))
    config = {**record.config, "data": cell.settings["data"]}
    return {
        **_head(cell),
        "config": config,
        "status": "done",
        "error": None,
        "metrics": dataclasses.asdict(record.metrics),
        "control": control,
        "verdict": record.verdict,
        "evidence": list(record.evidence),
        "seconds": dict(record.seconds),
        "train_seconds": round(sum(float(history.seconds.sum()) for history in result.outcome.histories), 3),
        "updates": sum(history.updates for history in result.outcome.histories),
        "versions": dict(record.versions),
        "device": record.device,
        "curves": _curves(result),
        "data": {"fingerprint": drawn.fingerprint},
    }


def _head(cell: Cell) -> Record:
    return {"format": CELL_FORMAT, "key": cell.key, "cell": cell.names, "config": cell.settings}


def _control(cell: Cell, drawn: _Drawn, planted: Planted | None, store: ArtifactStore) -> dict[str, Json]:
    """Return the figures of the control on this cell's test images; trains it where it is not kept."""
    config, loaded = cell.control.config.model_copy(update={"device": cell.config.device}), drawn.loaded
    weights = unpack_weights(store.get(cell.shared_control), drawn.fingerprint)
    runtime = Runtime.create(config.device, config.train.precision, config.train.compile)
    if weights is None:
        model = run(config, data=loaded).model
        if model is not None:
            store.put(cell.shared_control, pack_weights(model, drawn.fingerprint))
    else:
        build_model, _ = network_of(config, loaded.train)
        model = build_model(Seeds(cell.seed).generator("init"))
        model.load_state_dict(weights)
        model = runtime.place(model).eval()
    metrics = evaluate(model, runtime, test=loaded.test, triggered=planted.triggered if planted else None)
    return {"ca": metrics.ca, "asr": metrics.asr, "ra": metrics.ra}


def _curves(result: Result) -> dict[str, Json] | None:
    if result.truth is None:
        return None
    # The first that is of the observed images; a defence may train on others, such as those it was given.
    size = len(result.data)
    first = next((history for history in result.outcome.histories if history.losses.shape[1] == size), None)
    return None if first is None else {"phase": first.phase, **curves_of(first.losses, result.truth)}


def curves_of(losses: NDArray[np.float32], truth: PoisonedSet, shares: Sequence[float] = SHARES) -> dict[str, Json]:
    """Return what a phase shows of the poison, epoch by epoch; covers count neither as poison nor as clean.

    Args:
        losses: float32 (E, N), of every image in every epoch; NaN where an image was left out.
        truth: What was planted.
        shares: Shares of the images, 0..1, to isolate by lowest loss.

    Returns:
        The mean losses of poisoned and of clean images (E values each, None where there are none), and for each share
        the precision (E values, 0..1) of the images of lowest loss.
    """
    poison, counted = truth.poison.numpy(), ~truth.cover.numpy()
    precision: dict[str, Json] = {}
    for share in shares:
        precision[f"{share:g}"] = [_precision(row, poison, counted, share) for row in losses]
    return {
        "loss_poison": [_mean(row[poison]) for row in losses],
        "loss_clean": [_mean(row[counted & ~poison]) for row in losses],
        "precision": precision,
    }


def _precision(
    row: NDArray[np.float32], poison: NDArray[np.bool_], counted: NDArray[np.bool_], share: float
) -> float | None:
    seen = counted & ~np.isnan(row)
    if not seen.any():
        return None
    lowest = np.argsort(row[seen], kind="stable")[: max(1, round(share * int(seen.sum())))]
    return round(float(poison[seen][lowest].mean()), 6)


def _mean(values: NDArray[np.float32]) -> float | None:
    values = values[~np.isnan(values)]
    mean = float(values.mean(dtype=np.float64)) if len(values) else math.nan
    return round(mean, 6) if math.isfinite(mean) else None


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
