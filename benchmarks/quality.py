"""How good: `none`, `abl-modified` and `abl-paper` side by side with a control, over seeds; one JSON with every cell.

The control of a cell is a network trained on the same images before poisoning, with the same seed, and measured on the
same triggered test images: a clean network, too, sends some of them to the target by mistake.

    python benchmarks/quality.py demo --json benchmarks/results/demo.json
    python benchmarks/quality.py cifar10 --data DIR --json benchmarks/results/cifar10_cpu.json

`cifar10` draws 6,000 training and 2,000 test images from DIR (train/ and test/, one folder a class); `--full` takes all
of them and trains for 100 epochs, which wants a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from record import made_by, over_seeds, write

from antibackdoor.config import Choice, DataConfig, PoisonConfig, RunConfig, TrainConfig
from antibackdoor.console import ConsoleProgress
from antibackdoor.data.sources import Loaded, load
from antibackdoor.demo import demo_config
from antibackdoor.evaluation import evaluate
from antibackdoor.isolation import SIGNALS, Evidence, NetworkSignal, isolate
from antibackdoor.models import builder_from
from antibackdoor.ops.metrics import isolation_quality
from antibackdoor.pipeline import Result, limited, plant, run
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime
from antibackdoor.types import Metrics

# SIG poisons 80 % of the target class, a tenth of the images: 8 % of the set.
ATTACKS = {"badnets": 0.1, "blend": 0.1, "sig": 0.08}
# Where the victim crops, a patch in one corner stays whole in under a third of the crops; 6,000 images do not teach it
# (undefended attack success 13 % after 15 epochs, seed 0): it goes into the four corners.
PARAMS = {"badnets": {"corner": "all"}, "blend": {}, "sig": {}}


def config_for(row: str, attack: str, defence: str, seed: int, arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration of one cell; a control is the undefended cell without its attack."""
    if row == "demo":
        config = demo_config(seed, "none" if defence == "control" else defence)
    else:
        small = DataConfig(source=str(arguments.data), limit=6000, limit_test=2000)
        full = DataConfig(source=str(arguments.data))
        train = TrainConfig(epochs=15)
        if arguments.full:
            train = TrainConfig(epochs=100, batch_size=arguments.batch_size, lr=0.1 * arguments.batch_size / 128)
        config = RunConfig(
            data=full if arguments.full else small,
            model="wrn-16-1",
            attack=PoisonConfig(name=attack, rate=ATTACKS[attack], params=PARAMS[attack]),
            defence=Choice(name="none" if defence == "control" else defence),
            train=train,
            seed=seed,
            device=arguments.device,
        )
    return config.model_copy(update={"attack": None}) if defence == "control" else config


class Bench:
    """Runs cells on one loaded set; the controls, which know no attack, are trained once a seed."""

    def __init__(self, arguments: argparse.Namespace, data: Loaded) -> None:
        self._arguments, self._data = arguments, data
        self._controls: dict[int, Result] = {}

    def measure(self, attack: str, defence: str, seed: int) -> dict[str, Any]:
        """Run one cell and return its figures."""
        config = config_for(self._arguments.row, attack, defence, seed, self._arguments)
        started = time.perf_counter()
        cell: dict[str, Any] = {"row": self._arguments.row, "attack": attack, "defence": defence, "seed": seed}
        if defence == "control":
            metrics = self._control(config, attack, seed)
        else:
            result = run(config, data=self._data, progress=ConsoleProgress(quiet=True))
            metrics = result.record.metrics
            cell["phases"] = {name: round(value, 1) for name, value in result.record.seconds.items()}
            cell["precision_by_signal"] = by_signal(result)
        seconds = round(time.perf_counter() - started, 1)
        return {**cell, **dataclasses.asdict(metrics), "seconds": seconds}

    def _control(self, config: RunConfig, attack: str, seed: int) -> Metrics:
        if seed not in self._controls:
            self._controls[seed] = run(config, data=self._data, progress=ConsoleProgress(quiet=True))
        poisoned = config_for(self._arguments.row, attack, "none", seed, self._arguments)
        runtime, seeds = Runtime.create(config.device), Seeds(seed)
        drawn = limited(self._data, config.data, seeds)
        build_model, _ = builder_from(config.model, drawn.train)
        planted = plant(poisoned.attack, drawn, build_model, runtime, seeds)
        assert planted is not None
        target = planted.attack.single_target
        model = self._controls[seed].model
        return evaluate(model, runtime, test=drawn.test, triggered=planted.triggered, target=target)


def by_signal(result: Result) -> dict[str, float | None]:
    """Return the precision that every signal of losses would have had in the first phase, at 1 % of the set."""
    assert result.truth is not None
    evidence = Evidence.of(result.outcome.histories[0], result.data.labels, result.data.num_classes)
    precision = {}
    for signal in SIGNALS:
        if issubclass(SIGNALS.get(signal), NetworkSignal):
            continue
        found = isolate(evidence, signal=signal)
        quality = isolation_quality(found.scores, found.flagged, result.truth.poison, result.truth.cover)
        precision[signal] = quality["precision"]
    return precision


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and spread (standard deviation) over seeds of every attack and defence."""
    rows = []
    for attack in dict.fromkeys(cell["attack"] for cell in cells):
        for defence in dict.fromkeys(cell["defence"] for cell in cells):
            group = [cell for cell in cells if (cell["attack"], cell["defence"]) == (attack, defence)]
            row: dict[str, Any] = {"attack": attack, "defence": defence, "n": len(group)}
            keys = ("ca", "ca_target", "asr", "ra", "precision", "recall", "auroc", "seconds")
            rows.append(row | over_seeds(group, keys))
    return rows


def main() -> None:
    """Run the grid, printing a line a cell, and write the JSON after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=["demo", "cifar10"])
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10's train/ and test/")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS))
    parser.add_argument("--defences", nargs="+", default=["control", "none", "abl-modified", "abl-paper"])
    parser.add_argument("--full", action="store_true", help="all images, 100 epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.row == "cifar10" and arguments.data is None:
        parser.error("cifar10 needs --data DIR")
    attacks = arguments.attacks or (["badnets"] if arguments.row == "demo" else list(ATTACKS))
    data = load("embedded" if arguments.row == "demo" else str(arguments.data))
    bench = Bench(arguments, data)
    cells: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for attack in attacks:
            for defence in arguments.defences:
                cell = bench.measure(attack, defence, seed)
                cells.append(cell)
                figures = " ".join(
                    f"{key} {100 * cell[key]:5.1f}" for key in ("ca", "asr", "ra", "precision") if cell[key] is not None
                )
                print(f"{attack:8s} {defence:10s} seed {seed}: {figures} ({cell['seconds']} s)", flush=True)
                content = {
                    **made_by(arguments.device),
                    "config": config_for(arguments.row, attacks[0], "abl-modified", 0, arguments).dump(),
                    "summary": summarise(cells),
                    "cells": cells,
                }
                content["config"]["data"]["source"] = arguments.row
                write(arguments.json, content)


if __name__ == "__main__":
    main()
