"""Which signal finds the poison: precision of the 1 % that stage one of ABL isolates, by rule, signal and scope.

    python benchmarks/isolation.py embedded --json benchmarks/results/isolation_embedded.json
    python benchmarks/isolation.py DIR --json benchmarks/results/isolation_cifar10.json

DIR holds train/ with one folder a class; 6,000 of its images are drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from record import made_by, write

from antibackdoor.config import Choice, DataConfig, PoisonConfig, RunConfig
from antibackdoor.console import ConsoleProgress
from antibackdoor.data.sources import load
from antibackdoor.isolation import SIGNALS, Evidence, NetworkSignal, isolate
from antibackdoor.ops.metrics import isolation_quality
from antibackdoor.pipeline import run

# SIG poisons 80 % of the target class, a tenth of the images: 8 % of the set.
ATTACKS = {"badnets": 0.1, "blend": 0.1, "sig": 0.08}
RULES = ("batch", "sample")


def main() -> None:
    """Run stage one for every attack, seed and rule, and score its losses with every signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    data = load(arguments.source)
    limit = None if arguments.source == "embedded" else 6000
    cells = []
    for attack in arguments.attacks:
        for seed in arguments.seeds:
            for rule in RULES:
                config = RunConfig(
                    data=DataConfig(limit=limit, limit_test=100, holdout=0),
                    model="wrn-16-1",
                    attack=PoisonConfig(name=attack, rate=ATTACKS[attack]),
                    defence=Choice(
                        name="abl-modified",
                        params={"reduction": rule, "isolation_epochs": arguments.epochs, "signal": "loss"},
                    ),
                    seed=seed,
                )
                result = run(config, data=data, scan_only=True, progress=ConsoleProgress(quiet=True))
                assert result.truth is not None
                cell: dict[str, Any] = {"attack": attack, "seed": seed, "rule": rule}
                evidence = Evidence.of(result.outcome.histories[0], result.data.labels, result.data.num_classes)
                for signal in (name for name in SIGNALS if not issubclass(SIGNALS.get(name), NetworkSignal)):
                    for scope in ("set", "class"):
                        found = isolate(evidence, signal=signal, scope=scope)
                        quality = isolation_quality(
                            found.scores, found.flagged, result.truth.poison, result.truth.cover
                        )
                        cell[f"{signal}/{scope}"] = {key: quality[key] for key in ("precision", "auroc")}
                cells.append(cell)
                figures = " ".join(f"{k} {v['precision']:.2f}" for k, v in cell.items() if isinstance(v, dict))
                print(f"{attack:8s} seed {seed} {rule:6s} {figures}", flush=True)
    summary = []
    for attack in arguments.attacks:
        for rule in RULES:
            group = [cell for cell in cells if (cell["attack"], cell["rule"]) == (attack, rule)]
            for key in (key for key in group[0] if "/" in key):
                values = torch.tensor([cell[key]["precision"] for cell in group], dtype=torch.float64)
                spread = round(float(values.std()), 3) if len(group) > 1 else None
                summary.append(
                    {"attack": attack, "rule": rule, "signal": key, "n": len(group)}
                    | {"precision": round(float(values.mean()), 3), "precision_sd": spread}
                )
    write(arguments.json, {**made_by("auto"), "summary": summary, "cells": cells})


if __name__ == "__main__":
    main()
