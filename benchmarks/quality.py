"""How good: `none`, `abl` and `abl-paper` side by side with a control, over seeds; one JSON with every cell.

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
import json
import platform
import sys
import time
from pathlib import Path

import torch

from antibackdoor.config import Choice, DataConfig, PoisonConfig, RunConfig, TrainConfig
from antibackdoor.console import ConsoleProgress
from antibackdoor.data.sources import Loaded, load
from antibackdoor.demo import demo_config
from antibackdoor.evaluation import evaluate
from antibackdoor.models import builder_from
from antibackdoor.pipeline import limited, plant, run, versions
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime

# SIG poisons 80 % of the target class, a tenth of the images: 8 % of the set.
ATTACKS = {"badnets": 0.1, "blend": 0.1, "sig": 0.08}


def config_for(row: str, attack: str, defence: str, seed: int, arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration of one cell; a control is the undefended cell without its attack."""
    if row == "demo":
        config = demo_config(seed, "none" if defence == "control" else defence)
    else:
        small = DataConfig(source=str(arguments.data), limit=6000, limit_test=2000)
        full = DataConfig(source=str(arguments.data))
        train = TrainConfig(epochs=20)
        if arguments.full:
            train = TrainConfig(epochs=100, batch_size=arguments.batch_size, lr=0.1 * arguments.batch_size / 128)
        config = RunConfig(
            data=full if arguments.full else small,
            model="wrn-16-1",
            attack=PoisonConfig(name=attack, rate=ATTACKS[attack]),
            defence=Choice(name="none" if defence == "control" else defence),
            train=train,
            seed=seed,
            device=arguments.device,
        )
    return config.model_copy(update={"attack": None}) if defence == "control" else config


def measure(
    row: str, attack: str, defence: str, seed: int, data: Loaded, arguments: argparse.Namespace
) -> dict[str, object]:
    """Run one cell and return its figures."""
    config = config_for(row, attack, defence, seed, arguments)
    started = time.perf_counter()
    result = run(config, data=data, progress=ConsoleProgress(quiet=True))
    seconds = time.perf_counter() - started
    metrics = result.record.metrics
    if defence == "control":
        poisoned = config_for(row, attack, "none", seed, arguments)
        runtime = Runtime.create(config.device)
        seeds = Seeds(seed)
        drawn = limited(data, config.data, seeds)
        build_model, _ = builder_from(config.model, drawn.train)
        planted = plant(poisoned.attack, drawn, build_model, runtime, seeds)
        metrics = evaluate(
            result.model, runtime, test=drawn.test, triggered=planted.triggered, target=planted.attack.single_target
        )
    phases = {name: round(value, 1) for name, value in result.record.seconds.items()}
    cell = {"row": row, "attack": attack, "defence": defence, "seed": seed}
    return {**cell, **dataclasses.asdict(metrics), "seconds": round(seconds, 1), "phases": phases}


def summarise(cells: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return mean and spread (standard deviation) over seeds of every attack and defence."""
    rows = []
    for attack in dict.fromkeys(cell["attack"] for cell in cells):
        for defence in dict.fromkeys(cell["defence"] for cell in cells):
            group = [cell for cell in cells if (cell["attack"], cell["defence"]) == (attack, defence)]
            row: dict[str, object] = {"attack": attack, "defence": defence, "n": len(group)}
            for key in ("ca", "ca_target", "asr", "ra", "precision", "recall", "auroc", "seconds"):
                values = [cell[key] for cell in group if cell[key] is not None]
                if values:
                    tensor = torch.tensor(values, dtype=torch.float64)
                    row[key] = round(float(tensor.mean()), 4)
                    row[f"{key}_sd"] = round(float(tensor.std(correction=1)), 4) if len(values) > 1 else None
            rows.append(row)
    return rows


def main() -> None:
    """Run the grid, printing a line a cell, and write the JSON after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=["demo", "cifar10"])
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10's train/ and test/")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS))
    parser.add_argument("--defences", nargs="+", default=["control", "none", "abl", "abl-paper"])
    parser.add_argument("--full", action="store_true", help="all images, 100 epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.row == "cifar10" and arguments.data is None:
        parser.error("cifar10 needs --data DIR")
    attacks = arguments.attacks or (["badnets"] if arguments.row == "demo" else list(ATTACKS))
    data = load("embedded" if arguments.row == "demo" else str(arguments.data))
    cells: list[dict[str, object]] = []
    for seed in arguments.seeds:
        for attack in attacks:
            for defence in arguments.defences:
                cell = measure(arguments.row, attack, defence, seed, data, arguments)
                cells.append(cell)
                figures = " ".join(
                    f"{key} {100 * cell[key]:5.1f}" for key in ("ca", "asr", "ra", "precision") if cell[key] is not None
                )
                print(f"{attack:8s} {defence:10s} seed {seed}: {figures} ({cell['seconds']} s)", flush=True)
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                content = {
                    "command": " ".join(["python", *_relative(sys.argv)]),
                    "device": Runtime.create(arguments.device).describe(),
                    "platform": platform.platform(),
                    "versions": versions(),
                    "config": config_for(arguments.row, attacks[0], "abl", 0, arguments).dump(),
                    "summary": summarise(cells),
                    "cells": cells,
                }
                content["config"]["data"]["source"] = arguments.row
                arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _relative(words: list[str]) -> list[str]:
    """Keep absolute paths of this machine out of the record."""
    return ["DIR" if Path(word).is_absolute() and Path(word).is_dir() else word for word in words]


if __name__ == "__main__":
    main()
