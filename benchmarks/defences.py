"""How good defences are, beside none and a control; one JSON with every cell, continued where it stopped.

    python benchmarks/defences.py cifar10 --data DIR --json benchmarks/results/defences_cifar10_cpu.json
    python benchmarks/defences.py embedded --json benchmarks/results/defences_embedded.json
    python benchmarks/defences.py cifar10 --data DIR --full --device cuda --batch-size 1024 --json FILE

A row is an attack and a rate; the sets it is planted in are drawn anew with every seed. At the CPU size 6,000 training
images carry rates above 1 %, 20,000 those of 1 % and less, and 2,000 test images measure; of Imagenette it is 3,000 at
64 x 64 pixels for all. `--full` takes all images and 100 epochs. Figures of a cell, beside those of ``types.Metrics``:

* excess: attack success minus that of the control, a network trained on the same images before poisoning with the same
  seed and measured on the same triggered test images.
* ca_gap: clean accuracy of the control minus that of the cell.
* verdict, and false_alarm: whether it is "poisoned" without poison.
* trainings: images that all phases were shown, epoch by epoch, over those of one ordinary training: the cost without
  the noise of a clock; seconds, of all phases of training, beside it.
* cpu_seconds: of the processor, everything that the command does once the set is there, evaluation included; cost: the
  same over that of the undefended cell. With one thread (OMP_NUM_THREADS=1) other work beside it does not change them.
* commit: the code that made the cell; cells of older code stay until `--again witnesses` makes them anew.

No defence is told the rate, the target or the trigger.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from attacks import read_attack
from record import commit, kept_cells, made_by, over_seeds, write

from antibackdoor import load_plugin
from antibackdoor.config import DEFAULT_DEFENCE, Choice, DataConfig, PoisonConfig, RunConfig, TrainConfig
from antibackdoor.console import ConsoleProgress
from antibackdoor.data.sources import Loaded, load
from antibackdoor.evaluation import evaluate
from antibackdoor.models import builder_from
from antibackdoor.pipeline import Result, limited, plant, run
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime

ROWS = {
    "cifar10": (
        *("none", "badnets@0.1:corner=all", "badnets@0.05:corner=all", "blend@0.1", "blend@0.05", "sig@0.08"),
        *("sig@0.05", "trojan@0.1", "lf@0.1", "wanet@0.1", "bpp@0.1", "tact@0.05", "adap-blend@0.05"),
        "badnets@0.1:corner=all,labelling=all-to-all",
        *("badnets@0.01:corner=all", "blend@0.01", "sig@0.01", "badnets@0.005:corner=all", "blend@0.005"),
    ),
    "embedded": ("none", "badnets@0.1", "blend@0.1", "sig@0.08"),
    # Clean-label poison needs a class with enough images of its own; class 2 has 2,250 of the 39,209.
    "gtsrb": (
        *("none", "badnets@0.1:corner=all", "blend@0.1", "sig@0.04:target=2"),
        *("badnets@0.01:corner=all", "blend@0.01", "sig@0.01:target=2"),
    ),
    "imagenette": ("none", "badnets@0.1:corner=all", "blend@0.1", "sig@0.08", "badnets@0.01:corner=all", "blend@0.01"),
}
SMALL, LARGE, TEST = 6000, 20_000, 2000
IMAGENETTE, SIDE = 3000, 64
EPOCHS = {"cifar10": 20, "embedded": 15, "gtsrb": 20, "imagenette": 20}
# A sign in a mirror is another sign.
AUGMENT: dict[str, tuple[Literal["crop", "flip"], ...]] = {
    "cifar10": ("crop", "flip"),
    "embedded": ("flip",),
    "gtsrb": ("crop",),
    "imagenette": ("crop", "flip"),
}


@dataclass(frozen=True)
class Row:
    """One attack at one rate on one set; ``attack`` is None for the clean set."""

    text: str
    attack: PoisonConfig | None

    @staticmethod
    def of(text: str) -> Row:
        """Read a row as benchmarks/attacks.py reads attacks; "none" is the clean set."""
        return Row(text, None if text == "none" else read_attack(text))

    def limit(self, name: str) -> int:
        """Training images of a set at the CPU size."""
        if name == "imagenette":
            return IMAGENETTE
        return LARGE if self.attack is not None and self.attack.rate <= 0.01 else SMALL


def config_for(row: Row, defence: str, seed: int, arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration of one cell; a control is the undefended cell without its attack."""
    name = arguments.set
    train = TrainConfig(epochs=arguments.epochs or EPOCHS[name], augment=AUGMENT[name])
    data = DataConfig(limit=arguments.images or row.limit(name), limit_test=TEST, holdout=0)
    if name == "embedded":
        data = DataConfig(holdout=0)
    if arguments.full:
        size = arguments.batch_size
        train = train.model_copy(update={"epochs": 100, "batch_size": size, "lr": 0.1 * size / 128})
        data = DataConfig(holdout=0)
    return RunConfig(
        data=data,
        model=arguments.model,
        attack=None if defence == "control" else row.attack,
        defence=Choice(name="none" if defence == "control" else defence),
        train=train,
        seed=seed,
        device=arguments.device,
    )


class Bench:
    """Runs the cells of one seed; networks of controls are kept for the rows that share them."""

    def __init__(self, arguments: argparse.Namespace, data: Loaded) -> None:
        self._arguments, self._data = arguments, data
        self._commit = commit()
        self._controls: dict[tuple[int, int], Result] = {}

    def control(self, row: Row, seed: int) -> Result:
        """Return the control of a row: the same images before poisoning."""
        name = self._arguments.set
        images = self._arguments.images or row.limit(name)
        key = (0 if self._arguments.full or name == "embedded" else images, seed)
        if key not in self._controls:
            config = config_for(row, "control", seed, self._arguments)
            self._controls = {key: run(config, data=self._data, progress=ConsoleProgress(quiet=True))}
        return self._controls[key]

    def measure(self, row: Row, defence: str, seed: int, base: dict[str, Any] | None) -> dict[str, Any]:
        """Run one cell.

        Args:
            row: What is planted.
            defence: What defends; "none" gives the figures of the control beside its own.
            seed: Of everything.
            base: The undefended cell of the same row and seed, None for itself.
        """
        config = config_for(row, defence, seed, self._arguments)
        started = time.process_time()
        result = run(config, data=self._data, progress=ConsoleProgress(quiet=True))
        used = time.process_time() - started
        seconds = sum(float(history.seconds.sum()) for history in result.outcome.histories)
        cell = {"set": self._arguments.set, "row": row.text, "defence": defence, "seed": seed}
        cell |= dataclasses.asdict(result.record.metrics)
        cell |= {"verdict": result.record.verdict, "evidence": list(result.record.evidence)}
        cell |= {"seconds": round(seconds, 1), "phases": dict(result.record.seconds), "cpu_seconds": round(used, 1)}
        if base is None:
            ca, asr = self._of_control(row, seed, config)
            cell |= {"control_ca": ca, "control_asr": asr}
            base = cell
        cell |= {"control_ca": base["control_ca"], "control_asr": base["control_asr"]}
        cell["ca_gap"] = cell["control_ca"] - cell["ca"]
        cell["excess"] = None if cell["asr"] is None else cell["asr"] - cell["control_asr"]
        shown = sum(int(np.isfinite(history.losses).sum()) for history in result.outcome.histories)
        cell["trainings"] = round(shown / (config.train.epochs * cell["n_train"]), 3)
        cell["cost"] = round(used / base["cpu_seconds"], 3) if base.get("cpu_seconds") else None
        cell["flagged_share"] = cell["n_flagged"] / cell["n_train"]
        cell["false_alarm"] = None if row.attack else float(cell["verdict"] == "poisoned")
        cell["alarm"] = float(cell["verdict"] == "poisoned") if row.attack else None
        cell["commit"] = self._commit
        return cell

    def _of_control(self, row: Row, seed: int, config: RunConfig) -> tuple[float | None, float | None]:
        runtime, seeds = Runtime.create(config.device), Seeds(seed)
        drawn = limited(self._data, config.data, seeds)
        build_model, _ = builder_from(config.model, drawn.train)
        planted = plant(row.attack, drawn, build_model, runtime, seeds)
        triggered = planted.triggered if planted else None
        figures = evaluate(self.control(row, seed).model, runtime, test=drawn.test, triggered=triggered)
        return figures.ca, figures.asr


FIGURES = (
    *("ca", "asr", "ra", "ca_gap", "excess", "precision", "recall", "fpr", "auroc", "flagged_share", "false_alarm"),
    *("alarm", "trainings", "cost", "control_ca", "control_asr", "n_poison", "n_cover", "n_train"),
)


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean, spread (standard deviation) and worst over seeds of every row and defence."""
    rows = []
    for text, defence in dict.fromkeys((cell["row"], cell["defence"]) for cell in cells):
        group = [cell for cell in cells if (cell["row"], cell["defence"]) == (text, defence)]
        row: dict[str, Any] = {"row": text, "defence": defence, "n": len(group)}
        row["verdicts"] = [cell["verdict"] for cell in group]
        rows.append(row | over_seeds(group, FIGURES, worst=True))
    return rows


def main() -> None:
    """Run the cells that the JSON lacks, and those to be made again; write the JSON after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(ROWS))
    parser.add_argument("--data", help="folder with train/ and test/; not for embedded")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", metavar="ATTACK@RATE[:KEY=VALUE,...]", help="all of the set by default")
    parser.add_argument("--defences", nargs="+", default=["abl-modified", DEFAULT_DEFENCE])
    parser.add_argument("--again", nargs="+", default=[], metavar="DEFENCE", help="make their cells of this call anew")
    parser.add_argument("--epochs", type=int, default=0, help="of ordinary training; that of the set by default")
    parser.add_argument("--images", type=int, default=0, help="training images; as described above by default")
    parser.add_argument("--side", type=int, default=0, help="pixels of a side; 64 of Imagenette, else those of the set")
    parser.add_argument("--model", default="wrn-16-1")
    parser.add_argument("--full", action="store_true", help="all images, 100 epochs")
    parser.add_argument("--batch-size", type=int, default=1024, help="with --full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plugin", type=Path, help="file with attacks of its own, such as benchmarks/unseen.py")
    arguments = parser.parse_args()
    if arguments.plugin:
        load_plugin(arguments.plugin)
    if arguments.set != "embedded" and not arguments.data:
        parser.error(f"{arguments.set} needs --data DIR")
    cells = {(cell["row"], cell["seed"], cell["defence"]): cell for cell in kept_cells(arguments.json)}
    done = {key for key in cells if key[2] not in arguments.again}
    rows = [Row.of(text) for text in arguments.rows or ROWS[arguments.set]]
    side = arguments.side or (SIDE if arguments.set == "imagenette" and not arguments.full else None)
    bench = Bench(arguments, load(arguments.data or "embedded", image_size=side))
    for seed in arguments.seeds:
        for row in sorted(rows, key=lambda row: row.limit(arguments.set)):
            for defence in ("none", *arguments.defences):
                if (row.text, seed, defence) in done:
                    continue
                base = None if defence == "none" else cells[row.text, seed, "none"]
                cell = cells[row.text, seed, defence] = bench.measure(row, defence, seed, base)
                keys = ("ca", "ca_gap", "asr", "excess", "recall", "fpr")
                shown = " ".join(f"{key} {100 * cell[key]:5.1f}" for key in keys if cell[key] is not None)
                cost = f"trainings {cell['trainings']} cost {cell['cost']}"
                print(f"{row.text:28s} {defence:8s} {seed}: {shown} {cost} {cell['verdict']}", flush=True)
                _write(arguments, in_order(cells.values()), rows[0])


def in_order(cells: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort cells by row, in the order they came in, then by seed and defence, the undefended first."""
    found = list(cells)
    rows = list(dict.fromkeys(cell["row"] for cell in found))
    return sorted(
        found, key=lambda cell: (rows.index(cell["row"]), cell["seed"], cell["defence"] != "none", cell["defence"])
    )


def _write(arguments: argparse.Namespace, cells: list[dict[str, Any]], row: Row) -> None:
    config: dict[str, Any] = config_for(row, "none", arguments.seeds[0], arguments).dump()
    content = {
        **made_by(arguments.device),
        # How many images a cell has is its own, n_train.
        "config": {**config, "attack": None, "data": {**config["data"], "source": arguments.set, "limit": None}},
        "summary": summarise(cells),
        "cells": cells,
    }
    write(arguments.json, content)


if __name__ == "__main__":
    main()
