"""What each signal and each step of the filter brings; one JSON, and a figure.

    python benchmarks/ablation.py cifar10 --data DIR --json benchmarks/results/ablation_cifar10_cpu.json
    python benchmarks/ablation.py embedded --json benchmarks/results/ablation_embedded.json --figure docs/ablation.png

For each row (an attack and a rate, as in benchmarks/filter.py) and seed:

* signals: every signal of the table, and the filter's own four cuts, on one finished ordinary training. auroc: over
  the whole set; auroc_in_class: over the classes that the poison is labelled with, which is what is left once a class
  is known to be poisoned; r_precision: share of poison among the as many most suspect images as there is poison;
  seconds.
* steps: the filter as it grows. "losses": classes are cut by their losses, at half of the training and at its end, and
  a network is trained without the suspects; "features": suspects are sharpened by what the network makes of them;
  "channels": classes are also cut by what excites the channels; "late": and by what was hard and was learned all the
  same, or is new to the network; "referee": the network trained without the suspects judges them, once; "rounds":
  until little changes; "balance": what a class lost is made up for, which is the default.

Every step repeats trainings that a step before has done; those are done once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from filter import EPOCHS, Row, config_for
from record import kept_cells, made_by, write
from torch import Tensor, nn

from antibackdoor.config import RunConfig
from antibackdoor.data.sources import Loaded, load
from antibackdoor.defences.filter import Filter
from antibackdoor.evaluation import evaluate
from antibackdoor.isolation import (
    SIGNALS,
    Alarm,
    ChannelCut,
    Cut,
    Evidence,
    LateCut,
    Network,
    NewCut,
    look,
)
from antibackdoor.models import builder_from
from antibackdoor.ops.metrics import isolation_quality
from antibackdoor.pipeline import limited, plant
from antibackdoor.seeds import Seeds
from antibackdoor.training import Objective, Phase, Runtime, Trainer, TrainPlan, mean_loss
from antibackdoor.types import History, ImageSet, PoisonedSet

STEPS: dict[str, dict[str, object]] = {
    "losses": {"features": False, "channels": False, "late": False, "referee": False, "balance": False},
    "features": {"channels": False, "late": False, "referee": False, "balance": False},
    "channels": {"late": False, "referee": False, "balance": False},
    "late": {"referee": False, "balance": False},
    "referee": {"rounds": 1, "balance": False},
    "rounds": {"balance": False},
    "balance": {},
}
CUTS = {"cut": Cut, "channel-cut": ChannelCut, "late-cut": LateCut, "new-cut": NewCut}
ROWS = {
    "cifar10": ("badnets@0.1:corner=all", "blend@0.05", "sig@0.05", "lf@0.1", "ssba@0.1", "tact@0.05", "cba@0.1"),
    "embedded": ("badnets@0.1", "blend@0.05", "sig@0.08"),
}


class Remembering(Trainer):
    """The training loop, which does the same training once: by phase and images, from the same seed."""

    def __init__(self, runtime: Runtime, seeds: Seeds) -> None:
        super().__init__(runtime, seeds)
        self._done: dict[tuple[str, bytes], tuple[dict[str, Tensor], History]] = {}

    def fit(
        self,
        model: nn.Module,
        data: ImageSet,
        phase: Phase,
        *,
        objective: Objective = mean_loss,
        subset: Tensor | None = None,
    ) -> History:
        """Train, or remember."""
        key = (phase.name, b"" if subset is None else subset.numpy().tobytes())
        if key not in self._done:
            history = super().fit(model, data, phase, objective=objective, subset=subset)
            self._done[key] = ({name: value.clone() for name, value in model.state_dict().items()}, history)
        weights, history = self._done[key]
        self.runtime.place(model).load_state_dict(weights)
        return history


def figures_of(scores: Tensor, evidence: Evidence, truth: PoisonedSet) -> dict[str, float]:
    """Return how well scores tell poison, over the set and inside the classes that the poison is labelled with."""
    poison, cover = truth.poison, truth.cover
    top = torch.zeros_like(poison)
    top[scores.argsort(descending=True, stable=True)[: int(poison.sum())]] = True
    target = torch.isin(evidence.labels, evidence.labels[poison].unique())
    whole = isolation_quality(scores, top, poison, cover)
    own = isolation_quality(scores[target], top[target], poison[target], cover[target])
    figures = {"auroc": whole["auroc"], "auroc_in_class": own["auroc"], "r_precision": whole["precision"]}
    return {key: round(float(value), 4) for key, value in figures.items()}


def of_signals(
    evidence: Evidence, half: int, earlier: Tensor | None, truth: PoisonedSet
) -> dict[str, dict[str, float]]:
    """Return the figures of every signal, and of the cuts of one look at the end."""
    found: dict[str, dict[str, float]] = {}
    for name in SIGNALS:
        started = time.perf_counter()
        scores = SIGNALS.build(name, {}).scores(evidence)
        seconds = round(time.perf_counter() - started, 2)
        found[name] = figures_of(scores, evidence, truth) | {"seconds": seconds}
    count = len(evidence.labels)
    started = time.perf_counter()
    cuts = look(evidence, torch.arange(count), count, alarm=Alarm.never(), half=half, earlier=earlier).cuts
    seconds = round(time.perf_counter() - started, 2)
    for name, kind in CUTS.items():
        scores = torch.zeros(count)
        for cut in (cut for those in cuts.values() for cut in those if type(cut) is kind):
            scores[cut.rows] = (cut.suspicion * cut.strength).float()
        found[name] = figures_of(scores, evidence, truth) | {"seconds": seconds}
    return found


def measure(row: Row, seed: int, data: Loaded, arguments: argparse.Namespace) -> dict[str, object]:
    """Run one row with one seed."""
    config: RunConfig = config_for(row, "none", seed, arguments)
    runtime, seeds = Runtime.create(config.device), Seeds(seed)
    drawn = limited(data, config.data, seeds)
    build_model, _ = builder_from(config.model, drawn.train)
    planted = plant(row.attack, drawn, build_model, runtime, seeds)
    if planted is None:
        raise SystemExit("an ablation needs attacks")
    observed = planted.train.observed
    plan = TrainPlan(epochs=config.train.epochs, augment=config.train.augment)
    fit = Remembering(runtime, seeds)
    first, half = build_model(seeds.generator("init")), Filter().looker().first(plan)
    start = fit(first, observed, Phase("look", plan, last=half, part_of="train"))
    earlier = Filter().looker().look_at(start, first, observed, fit, plan).seen
    rest = fit(first, observed, Phase("train", plan, first=half, part_of="train"))
    losses = torch.from_numpy(np.concatenate([start.losses, rest.losses]))
    evidence = Evidence(losses, observed.labels, observed.num_classes, None, Network(first, observed, runtime))
    cell: dict[str, object] = {"row": row.text, "seed": seed, "n_train": len(observed)}
    cell["n_poison"] = int(planted.train.poison.sum())
    cell["signals"] = of_signals(evidence, half, earlier, planted.train)
    undefended = evaluate(first, runtime, test=drawn.test, triggered=planted.triggered)
    steps: dict[str, object] = {"none": {"ca": undefended.ca, "asr": undefended.asr, "trainings": 1.0}}
    for name, params in STEPS.items():
        outcome = Filter(**params).run(observed, build_model=build_model, fit=fit, plan=plan, seeds=seeds)
        metrics = evaluate(
            outcome.model,
            runtime,
            test=drawn.test,
            triggered=planted.triggered,
            train=observed,
            isolation=outcome.isolation,
            truth=planted.train,
        )
        shown = sum(int(np.isfinite(history.losses).sum()) for history in outcome.histories)
        figures = {key: getattr(metrics, key) for key in ("ca", "asr", "precision", "recall", "fpr")}
        trainings = round(shown / (plan.epochs * len(observed)), 3)
        steps[name] = figures | {"trainings": trainings, "verdict": outcome.isolation.verdict}
    cell["steps"] = steps
    return cell


def draw(cells: list[dict[str, object]], path: Path) -> None:
    """Draw the signals' AUROC inside the poisoned classes: a row a signal, a column an attack, means over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(cell["row"] for cell in cells))
    names = list(cells[0]["signals"])
    values = np.array(
        [
            [np.mean([c["signals"][name]["auroc_in_class"] for c in cells if c["row"] == row]) for row in rows]
            for name in names
        ]
    )
    order = values.mean(1).argsort()[::-1]
    figure = Figure(figsize=(1.6 + 1.15 * len(rows), 1.4 + 0.36 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(values[order], vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for y, name in enumerate(order):
        for x in range(len(rows)):
            value = values[name, x]
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.6 else "white")
    axes.set_xticks(range(len(rows)), [row.split(":")[0].replace("@", "\n") for row in rows])
    axes.set_yticks(range(len(names)), [names[index] for index in order])
    axes.set_title("AUROC of poison inside its class", loc="left")
    figure.colorbar(picture, ax=axes, fraction=0.04)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the rows that the JSON lacks, printing a line a step, and write it after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(ROWS))
    parser.add_argument("--data", help="folder with train/ and test/; not for embedded")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", metavar="ATTACK@RATE[:KEY=VALUE,...]")
    parser.add_argument("--epochs", type=int, default=0, help="that of the set by default")
    parser.add_argument("--model", default="wrn-16-1")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    arguments.full = False
    arguments.epochs = arguments.epochs or EPOCHS[arguments.set]
    cells = kept_cells(arguments.json)
    done = {(cell["row"], cell["seed"]) for cell in cells}
    wanted = [(text, seed) for seed in arguments.seeds for text in arguments.rows or ROWS[arguments.set]]
    data = load(arguments.data or "embedded")
    for text, seed in wanted:
        if (text, seed) in done:
            continue
        cells.append(measure(Row.of(text), seed, data, arguments))
        best = sorted(cells[-1]["signals"].items(), key=lambda item: -item[1]["auroc_in_class"])[:4]
        shown = " ".join(f"{name} {figures['auroc_in_class']:.3f}" for name, figures in best)
        print(f"{text} {seed}: {shown}", flush=True)
        for name, figures in cells[-1]["steps"].items():
            shown = " ".join(f"{k} {v:.3f}" for k, v in figures.items() if isinstance(v, float))
            print(f"  {name:9s} {shown}", flush=True)
        config = config_for(Row.of(text), "none", seed, arguments).dump() | {"attack": None}
        config["data"] = {**config["data"], "source": arguments.set}
        content = {**made_by(arguments.device), "config": config, "cells": cells}
        write(arguments.json, content)
    if arguments.figure and cells:
        draw(cells, arguments.figure)


if __name__ == "__main__":
    main()
