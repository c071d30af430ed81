"""A grid from its configuration to its tables: runs what is missing, keeps what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antibackdoor.benchmark.cells import Cell
from antibackdoor.benchmark.folder import GridFolder, Record, claimed
from antibackdoor.benchmark.grid import GridConfig
from antibackdoor.benchmark.measure import Task, failed
from antibackdoor.benchmark.pools import LocalPool, Pool
from antibackdoor.benchmark.shared import intact
from antibackdoor.benchmark.watch import NOBODY, Watcher

__all__ = ["Finished", "run_grid", "write_summaries"]


@dataclass(frozen=True)
class Finished:
    """What a grid gives back.

    Attributes:
        records: One a cell, in the order of the grid.
        ran: How many of them are of this call.
        files: The summaries that were written.
    """

    records: tuple[Record, ...]
    ran: int
    files: tuple[Path, ...]

    @property
    def failures(self) -> tuple[Record, ...]:
        """The records of cells that could not be measured."""
        return tuple(record for record in self.records if record["status"] == "failed")


def run_grid(
    grid: GridConfig,
    out: Path,
    *,
    pool: Pool | None = None,
    retry_failed: bool = True,
    watcher: Watcher = NOBODY,
    summaries: bool = True,
) -> Finished:
    """Run the cells of a grid that have no record yet, and write the summaries.

    A result does not depend on the pool, on the order of the cells or on what was there before.

    Args:
        grid: What to run; the sources of its data must be given.
        out: Its folder; one process at a time.
        pool: Who does the work; this process alone if None.
        retry_failed: Run cells that failed before once more.
        watcher: Is told how far it is.
        summaries: Write them; seconds that a run with little time saves.

    Returns:
        All records of the grid, failed ones included.

    Raises:
        ConfigError: The grid has no cells, or its data are not there.
        RunExistsError: Another process works in ``out``, or it holds something else.
        StorageError: ``out`` or a record in it is of another format, or cannot be written.
        KeyboardInterrupt: As it came, after the summaries of what is there.
    """
    cells = grid.with_sources({}).cells()
    with claimed(out) as folder:
        records = {cell.file: record for cell in cells if (record := folder.record_of(cell)) is not None}
        folder.begin(grid, cells)
        settled = {name for name, record in records.items() if record["status"] == "done" or not retry_failed}
        pending = [cell for cell in cells if cell.file not in settled]
        ran = 0
        try:
            if pending:
                with pool or LocalPool(1) as workers:
                    watcher.begin(cells, [records[name] for name in settled], workers.slots)
                    for cell, record in _run(pending, folder, workers, watcher):
                        folder.write(cell, record)
                        records[cell.file] = record
                        ran += 1
        except KeyboardInterrupt:
            if summaries:
                write_summaries(_in_order(cells, records), out)
            raise
        finally:
            watcher.close()
        in_order = _in_order(cells, records)
        return Finished(in_order, ran, tuple(write_summaries(in_order, out)) if summaries else ())


def write_summaries(records: Sequence[Mapping[str, object]], out: Path) -> list[Path]:
    """Write tables, figures and the leaderboard.

    Args:
        records: The cells.
        out: Folder for the files.

    Returns:
        The files written.
    """
    from antibackdoor.benchmark.figures import write_figures
    from antibackdoor.benchmark.leaderboard import write_leaderboard
    from antibackdoor.benchmark.tables import write_tables

    if not records:
        return []
    return [*write_tables(records, out), *write_figures(records, out), *write_leaderboard(records, out)]


def _run(pending: Sequence[Cell], folder: GridFolder, pool: Pool, watcher: Watcher) -> Iterator[tuple[Cell, Record]]:
    """Make what cells share, then measure the rest; yields the record of every pending cell once."""
    wanted = {cell.file for cell in pending}
    broken: dict[str, Record] = {}  # by name of the poisoned set that could not be made
    for task, record in pool.run(_shared_first(pending, folder), folder.store, watcher.started):
        watcher.ended(task, record)
        if task.kind == "plant" and record is not None:
            broken[str(task.cell.shared_poison)] = record
        elif record is not None and task.cell.file in wanted:
            wanted.remove(task.cell.file)
            yield task.cell, record
    left: list[Task] = []
    for cell in pending:
        if (cause := broken.get(str(cell.shared_poison))) is not None:
            record = {**failed(cell, "", ""), "error": cause["error"]}
            watcher.ended(Task(cell, "measure"), record)
            yield cell, record
        elif cell.file in wanted:
            left.append(Task(cell, "measure"))
    for task, record in pool.run(left, folder.store, watcher.started):
        watcher.ended(task, record)
        if record is not None:
            yield task.cell, record


def _shared_first(pending: Sequence[Cell], folder: GridFolder) -> list[Task]:
    """Return the work that others wait for: controls and poisoned sets that are not there, or are damaged."""
    tasks: dict[str, Task] = {}
    there: dict[str, bool] = {}

    def missing(name: str) -> bool:
        if name not in there:
            there[name] = intact(folder.store.get(name))
        return not there[name]

    for cell in pending:
        if cell.is_control or missing(cell.shared_control):
            tasks[cell.shared_control] = Task(cell.control, "measure")
    for cell in pending:
        if cell.shared_poison is not None and missing(cell.shared_poison):
            tasks.setdefault(cell.shared_poison, Task(cell, "plant"))
    return list(tasks.values())


def _in_order(cells: Sequence[Cell], records: Mapping[str, Record]) -> tuple[Record, ...]:
    return tuple(records[cell.file] for cell in cells if cell.file in records)
