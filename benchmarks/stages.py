"""What each stage of a defence does: accuracy and attack success between its trainings, and where ABL's rule acts.

    python benchmarks/stages.py abl-code --data DIR --json benchmarks/results/stages_cifar10_cpu.json --seed 1

DIR holds train/ and test/. After every training of the defence its network is evaluated on all test images, clean and
triggered; nothing else is changed. Of every epoch of a training that is held at a level (``--gamma``, 0.5 by default)
the mean loss is kept, and the shares of images and of batches below the level: a batch whose mean is below it is one in
which LGA ascends, and flooding as well. `--set` gives the defence's own settings, as YAML, `--row` the attack and the
share that is poisoned. A JSON has one cell for a defence with its settings, a row and a seed, and is continued.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from attacks import read_attack
from record import commit, kept_cells, made_by, write
from torch import Tensor, nn

from antibackdoor.config import DataConfig
from antibackdoor.data.sources import load
from antibackdoor.defences import DEFENCES
from antibackdoor.evaluation import evaluate
from antibackdoor.models import builder_from
from antibackdoor.preparing import Planted, limited, plant
from antibackdoor.seeds import Seeds
from antibackdoor.training import Objective, Phase, Runtime, Step, Trainer, TrainPlan, mean_loss
from antibackdoor.types import History, ImageSet


class Watched:
    """A training loop that evaluates the network after each training.

    Args:
        trainer: The loop.
        planted: What is evaluated.
        test: Clean test images.
        gamma: Level of the loss, in nats.
    """

    def __init__(self, trainer: Trainer, planted: Planted, test: ImageSet, gamma: float) -> None:
        self._trainer, self._planted, self._test, self._gamma = trainer, planted, test, gamma
        self.stages: list[dict[str, Any]] = []

    @property
    def runtime(self) -> Runtime:
        """Where it computes."""
        return self._trainer.runtime

    def __call__(
        self,
        model: nn.Module,
        data: ImageSet,
        phase: Phase,
        *,
        objective: Objective = mean_loss,
        subset: Tensor | None = None,
    ) -> History:
        """Train, and keep what came of it."""
        below: list[bool] = []

        def counted(step: Step) -> Tensor:
            below.append(bool(step.losses.mean() < self._gamma))
            return objective(step)

        history = self._trainer(model, data, phase, objective=counted, subset=subset)
        found = evaluate(model, self.runtime, test=self._test, triggered=self._planted.triggered)
        poison = self._planted.train.poison.numpy()
        batches = np.array_split(np.array(below, dtype=float), len(history.losses))
        epochs = []
        for losses, shares in zip(history.losses, batches, strict=True):
            trained = np.isfinite(losses)
            kinds = {"poison": trained & poison, "clean": trained & ~poison}
            means = {name: round(float(losses[rows].mean()), 4) for name, rows in kinds.items() if rows.any()}
            one = {"loss": round(float(losses[trained].mean()), 4), **means}
            one["images below"] = round(float((losses[trained] < self._gamma).mean()), 4)
            epochs.append(one | {"batches below": round(float(shares.mean()), 4)})
        stage = {"phase": phase.name, "updates": history.updates, "ca": found.ca, "asr": found.asr, "epochs": epochs}
        self.stages.append(stage)
        print(
            f"{phase.name}: {history.updates} updates, accuracy {100 * (found.ca or 0):.1f} %, attack success "
            f"{100 * (found.asr or 0):.1f} %, loss {epochs[-1]['loss']}, batches below "
            f"{[one['batches below'] for one in epochs]}",
            flush=True,
        )
        return history


def main() -> None:
    """Run one cell, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("defence")
    parser.add_argument("--data", required=True, help="folder with train/ and test/")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--row", default="badnets@0.1", metavar="ATTACK@RATE[:KEY=VALUE,...]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="training images; all by default")
    parser.add_argument("--model", default="wrn-16-1")
    parser.add_argument("--gamma", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=69, help="of ordinary training, where the defence asks for it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the defence")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    settings = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in arguments.set)}
    runtime, seeds = Runtime.create(arguments.device), Seeds(arguments.seed)
    drawn = limited(load(arguments.data), DataConfig(limit=arguments.images, holdout=0), seeds)
    if drawn.test is None:
        parser.error(f"{arguments.data}: there are no test images to evaluate on")
    build_model, _ = builder_from(arguments.model, drawn.train)
    planted = plant(read_attack(arguments.row), drawn, build_model, runtime, seeds)
    if planted is None:
        parser.error("--row: give an attack")
    watched = Watched(Trainer(runtime, seeds), planted, drawn.test, arguments.gamma)
    defence = DEFENCES.build(arguments.defence, settings)
    plan = TrainPlan(epochs=arguments.epochs)
    observed = planted.train.observed
    outcome = defence.run(observed, build_model=build_model, fit=watched, plan=plan, seeds=seeds)
    flagged = outcome.isolation.flagged & planted.train.poison
    cell = {"row": arguments.row, "defence": arguments.defence, "settings": settings, "seed": arguments.seed}
    cell |= {"n_train": len(observed), "n_poison": int(planted.train.poison.sum()), "model": arguments.model}
    cell |= {"flagged": int(outcome.isolation.flagged.sum()), "flagged_poison": int(flagged.sum())}
    cell |= {"gamma": arguments.gamma, "stages": watched.stages, "plan": dataclasses.asdict(plan), "commit": commit()}
    keys = ("row", "defence", "settings", "seed", "n_train")
    kept = [one for one in kept_cells(arguments.json) if any(one[key] != cell[key] for key in keys)]
    write(arguments.json, {**made_by(arguments.device), "cells": [*kept, cell]})


if __name__ == "__main__":
    main()
