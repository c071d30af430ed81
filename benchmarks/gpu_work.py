"""The steps of benchmarks/gpu.py that need the package: speed, cells of the paper's grid, and keeping what came back.

Usage: python benchmarks/gpu_work.py {speed,cells,keep} ...     (--help says more; gpu.py calls the first two)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import speed
import torch
from record import commit, made_by, write
from torch.profiler import ProfilerActivity, profile

from antibackdoor.benchmark import Cell, GridConfig, Record, local_pool, run_grid
from antibackdoor.benchmark.folder import claimed
from antibackdoor.benchmark.measure import Task
from antibackdoor.benchmark.watch import Nobody
from antibackdoor.errors import AntiBackdoorError
from antibackdoor.models import builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Runtime, Trainer, TrainPlan

RECORDS, GRID = "records.jsonl", "paper"
MODES = ("off", "on", "graphs")
TRIAL_EPOCHS = 6
FIRST = ("badnets", "blend", "sig")
KEPT_DEFENCES = ("none", "abl-code", "witnesses")


def part_of(grid: GridConfig, step: str) -> GridConfig:
    """Return the cells of a step: one data set, its attacks, the defences that matter most, the first seed.

    Args:
        grid: The whole.
        step: "first", "attacks" or "imagenette".
    """
    name = "imagenette" if step == "imagenette" else "cifar10"
    attacks = [attack for attack in grid.attacks if step == "attacks" or attack.name in FIRST]
    return grid.model_copy(
        update={
            "data": tuple(data for data in grid.data if data.name == name),
            "attacks": tuple(attacks),
            "defences": tuple(defence for defence in grid.defences if defence.name in KEPT_DEFENCES),
            "seeds": grid.seeds[:1],
        }
    )


@dataclass
class Lines(Nobody):
    """Appends every record to a file the moment it is there, forced to the disk, and prints a line.

    Attributes:
        path: The file.
        started_at: Seconds of ``time.monotonic`` at which a cell began, by title.
    """

    path: Path
    started_at: dict[str, float] = field(default_factory=dict)

    def begin(self, cells: Sequence[Cell], known: Sequence[Record], slots: int) -> None:
        """Say how much there is to do."""
        print(f"{len(cells)} cells, {len(known)} from before, {slots} at once")

    def started(self, task: Task) -> None:
        """Look at the clock."""
        self.started_at[task.cell.title] = time.monotonic()

    def ended(self, task: Task, record: Record | None) -> None:
        """Keep a record."""
        if record is None:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**record, "commit": commit()}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        took = time.monotonic() - self.started_at.get(task.cell.title, time.monotonic())
        print(f"{task.cell.title}: {_figures(record)}, {took:.0f} s")


def _figures(record: Record) -> str:
    if record["status"] != "done":
        return f"failed: {record['error']}"
    metrics: Any = record["metrics"]
    shares = {name: metrics.get(name) for name in ("ca", "asr")}
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in shares.items() if value is not None)


def run_cells(args: argparse.Namespace) -> int:
    """Run the cells of a step that have no record; returns 1 where one failed."""
    grid = part_of(GridConfig.load(args.grid), args.step).model_copy(update={"device": args.device})
    sources = dict(text.split("=", 1) for text in args.data)
    grid = grid.with_sources({data.name: sources[data.name] for data in grid.data})
    folder = args.work / GRID
    if (args.results / GRID).exists() and not folder.exists():
        shutil.copytree(args.results / GRID, folder)
    pool = local_pool(args.device, args.jobs)
    if args.device.startswith("cuda"):  # processors are there to be used: the looks of the default are work for them
        pool = local_pool(args.device, args.jobs, max(1, len(os.sched_getaffinity(0)) // pool.jobs))
    finished = run_grid(grid, folder, pool=pool, watcher=Lines(args.out / RECORDS), summaries=False)
    count, failed = len(finished.records), len(finished.failures)
    print(f"{count} cells: {finished.ran} run now, {count - finished.ran} from before, {failed} failed")
    return int(bool(finished.failures))


def run_speed(args: argparse.Namespace) -> int:
    """Time ABL uncompiled, compiled and as graphs; then all its epochs in the fastest way; then profile the loop."""
    path = args.out / "speed.json"
    content: dict[str, Any] = {"trials": [], "commit": commit(), **made_by(args.device)}
    trials: list[dict[str, Any]] = []
    # Compiling for a CPU takes minutes and tells nothing of a GPU.
    for mode in MODES if args.device.startswith("cuda") else MODES[:1]:
        try:
            result = speed.abl_on_device(_speed_options(args, mode, min(TRIAL_EPOCHS, args.epochs)))
            trials.append({"compile": mode, **result})
        except Exception as error:  # noqa: BLE001 - one way that fails must not cost the others
            trials.append({"compile": mode, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
            print(f"compile {mode}: {trials[-1]['error']}")
        write(path, {**content, "trials": trials})
    worked = [trial for trial in trials if "error" not in trial]
    best = str(min(worked, key=lambda trial: trial["seconds_excluding_compile"])["compile"])
    whole = {"compile": best, **speed.abl_on_device(_speed_options(args, best, args.epochs))}
    write(path, {**content, "trials": trials, "whole": whole})
    table, figures = profiled(args)
    (args.out / "profile.txt").write_text(table + "\n", encoding="utf-8")
    write(path, {**content, "trials": trials, "whole": whole, "profile": figures})
    return 0


def _speed_options(args: argparse.Namespace, mode: str, epochs: int) -> argparse.Namespace:
    sizes = ["--images", str(args.images), "--batch-size", str(args.batch_size), "--gpu-epochs", str(epochs)]
    return speed.parse([*sizes, "--scale-rate", "--device", args.device, "--compile", mode])


def profiled(args: argparse.Namespace, batches: int = 20) -> tuple[str, dict[str, float]]:
    """Profile an epoch of ordinary training, uncompiled.

    Returns:
        The table of the operations that cost most, and in figures: batches, seconds of the epoch unprofiled, seconds
        that the device computed in the profiled one (0 on a CPU).
    """
    cuda = args.device.startswith("cuda")
    data = speed.synthetic(min(args.images, batches * args.batch_size), 0)
    build, _ = builder_from(speed.NETWORK, data)
    trainer = Trainer(Runtime.create(args.device, compile_mode="off"), Seeds(0))
    model, plan = build(Seeds(0).generator("init")), TrainPlan(1, args.batch_size, 0.1)
    trainer.fit(model, data, Phase("warm", plan))
    seconds = float(trainer.fit(model, data, Phase("timed", plan)).seconds.sum())
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as seen:
        trainer.fit(model, data, Phase("profiled", plan))
    averages = seen.key_averages()
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    table = averages.table(sort_by=order, row_limit=25, max_name_column_width=50)
    busy = sum(event.self_device_time_total for event in averages) / 1e6 if cuda else 0.0
    count = -(-len(data) // args.batch_size)
    return table, {"batches": count, "batch_size": args.batch_size, "seconds": seconds, "device_seconds": busy}


def keep(args: argparse.Namespace) -> int:
    """Write what came back into the committed results: cells as the folder of a grid, the rest as files."""
    out, results = args.folder, args.results
    cells = {cell.key: cell for cell in GridConfig.load(args.grid).cells()}
    kept = 0
    with claimed(results / GRID) as folder:
        folder.begin(GridConfig.load(args.grid), list(cells.values()))
        for record in _lines(out / RECORDS):
            cell = cells.get(str(record["key"]))
            if cell is None or record["status"] != "done":
                print(f"left out: {record['cell']}: {record['error'] or 'no cell of the grid'}")
            else:
                folder.write(cell, record)
                kept += 1
    (results / GRID / ".lock").unlink(missing_ok=True)
    for name in ("machine.json", "speed.json", "profile.txt"):
        if (out / name).exists():
            shutil.copyfile(out / name, results / name)
    if (out / "tests.xml").exists():
        write(results / "tests.json", tests_of(out / "tests.xml"))
    print(f"{kept} records kept in {results}")
    return 0


def _lines(path: Path) -> Iterator[Record]:
    """Yield the records of a file; a last line that was cut off is no record."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            print(f"{path.name}: a line that was cut off is left out")


def tests_of(path: Path) -> dict[str, Any]:
    """Return what pytest's XML says: counts, and every test with its outcome and seconds."""
    found: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in {"failure", "error", "skipped"}), "passed")
        found[str(case.get("name"))] = {"outcome": outcome, "seconds": float(case.get("time", 0))}
    outcomes = [str(test["outcome"]) for test in found.values()]
    return {"counts": {name: outcomes.count(name) for name in sorted(set(outcomes))}, "tests": found}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="cuda")
    common.add_argument("--out", type=Path, required=True, help="folder for what is measured")
    timing = verbs.add_parser("speed", parents=[common], help=run_speed.__doc__)
    timing.add_argument("--images", type=int, default=50_000)
    timing.add_argument("--epochs", type=int, default=100)
    timing.add_argument("--batch-size", type=int, default=1024)
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--grid", type=Path, default=root / "benchmarks" / "grids" / "paper.yaml")
    places.add_argument("--results", type=Path, default=root / "benchmarks" / "results" / "gpu")
    cells = verbs.add_parser("cells", parents=[common, places], help=run_cells.__doc__)
    cells.add_argument("step", choices=("first", "attacks", "imagenette"))
    cells.add_argument("--data", action="append", default=[], metavar="NAME=DIR")
    cells.add_argument("--jobs", type=int)
    cells.add_argument("--work", type=Path, required=True, help="folder of the grid while it runs")
    keeping = verbs.add_parser("keep", parents=[places], help=keep.__doc__)
    keeping.add_argument("folder", type=Path, help="--out of gpu.py")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for."""
    args = parse(argv)
    torch.manual_seed(0)
    try:
        return {"speed": run_speed, "cells": run_cells, "keep": keep}[args.verb](args)
    except AntiBackdoorError as error:
        print(f"gpu_work.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
