"""How strong the filter's evidence gets where there is no poison: the null behind its alarm; one JSON.

    python benchmarks/calibrate.py embedded --json benchmarks/results/calibrate_embedded.json
    python benchmarks/calibrate.py cifar10 --data DIR --json benchmarks/results/calibrate_cifar10_cpu.json
    python benchmarks/calibrate.py imagenette --data DIR --json benchmarks/results/calibrate_imagenette_cpu.json

Each cell trains once on clean images, as ordinary training does, and cuts every class, by losses, by channels, by what
was learned late and by what is new in what the network sees, at the filter's first look and at the end. `null` is over
all cells: of the largest strength of any class and kind of cut, mean, spread, and what 5 % of clean trainings would
exceed by a Gumbel distribution with that mean and spread. Cells of older code stay until `--again` makes those of the
call anew. Natural trouble that is no poison is among the sets:

* plain: as it is;
* noise: 5 % of the labels are wrong, at random;
* duplicates: 5 % of the images, all of one class, are copies of ten of them;
* imbalance: the classes shrink evenly down to a tenth of the first;
* coarse: two classes at a time are one, so that each holds two kinds of things.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch
from filter import AUGMENT, EPOCHS, IMAGENETTE, SIDE, SMALL
from record import CUTS, commit, kept_cells, made_by, null_of, write

from antibackdoor.data.sources import load, subsample
from antibackdoor.defences.filter import Filter
from antibackdoor.isolation import ChannelCut, Cut, LateCut, NewCut
from antibackdoor.models import builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Runtime, Trainer, TrainPlan
from antibackdoor.types import ImageSet

KINDS = ("plain", "noise", "duplicates", "imbalance", "coarse")
TROUBLE = 0.05
KINDS_OF_CUTS = dict(zip(CUTS, (Cut, ChannelCut, LateCut, NewCut), strict=True))


def troubled(data: ImageSet, kind: str, seeds: Seeds) -> ImageSet:
    """Return the set with one kind of natural trouble."""
    generator = seeds.generator("trouble")
    order = torch.randperm(len(data), generator=generator)
    count = round(TROUBLE * len(data))
    if kind == "noise":
        labels = data.labels.clone()
        shift = torch.randint(1, data.num_classes, (count,), generator=generator)
        labels[order[:count]] = (labels[order[:count]] + shift) % data.num_classes
        return dataclasses.replace(data, labels=labels)
    if kind == "duplicates":
        own = (data.labels == int(torch.randint(data.num_classes, (1,), generator=generator))).nonzero().squeeze(1)
        images = data.images.clone()
        images[own[:count]] = data.images[own[-10:]].repeat(-(-count // 10), 1, 1, 1)[: len(own[:count])]
        return dataclasses.replace(data, images=images)
    if kind == "imbalance":
        share = torch.linspace(1, 0.1, data.num_classes)
        kept = [
            rows[: max(20, round(float(share[label]) * len(rows)))]
            for label in range(data.num_classes)
            for rows in [(data.labels == label).nonzero().squeeze(1)]
        ]
        return data.select(torch.cat(kept).sort().values)
    if kind == "coarse":
        pairs = [" or ".join(data.classes[first : first + 2]) for first in range(0, data.num_classes, 2)]
        return dataclasses.replace(data, labels=data.labels // 2, classes=tuple(pairs))
    return data


def measure(data: ImageSet, kind: str, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Train once and return every class's figures at the first look and at the end."""
    seeds, runtime = Seeds(seed), Runtime.create(arguments.device)
    drawn = troubled(subsample(data, min(arguments.limit, len(data)), seeds.generator("limit train")), kind, seeds)
    build_model, _ = builder_from(arguments.model, drawn)
    plan = TrainPlan(epochs=arguments.epochs or EPOCHS[arguments.set], augment=AUGMENT[arguments.set])
    looker, fit = Filter().looker(), Trainer(runtime, seeds)
    model, half = build_model(seeds.generator("init")), looker.first(plan)
    cell: dict[str, object] = {"set": arguments.set, "kind": kind, "seed": seed, "n_train": len(drawn)}
    losses, earlier = np.empty((0, len(drawn)), np.float32), None
    for name, first, last in (("look", 0, half), ("end", half, plan.epochs)):
        history = fit(model, drawn, Phase(name, plan, first=first, last=last, part_of="train"))
        losses = np.concatenate([losses, history.losses])
        whole = dataclasses.replace(history, losses=losses)
        found = looker.look_at(whole, model, drawn, fit, plan, earlier=earlier)
        earlier = found.seen
        cuts = [cut for those in found.cuts.values() for cut in those]
        cell[name] = [{"label": cut.label, "strength": cut.strength, "figures": cut.figures} for cut in cuts]
        cell[f"{name}_gain"] = max(cut.gain for cut in cuts if isinstance(cut, Cut))
        for what, kind_of_cut in KINDS_OF_CUTS.items():
            cell[f"{name}_{what}"] = max((cut.strength for cut in cuts if type(cut) is kind_of_cut), default=None)
        cell[f"{name}_alarm"] = float(bool(found.suspects.any()))
    return cell


def main() -> None:
    """Run the cells that the JSON lacks, and those to be made again; write the JSON after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(EPOCHS))
    parser.add_argument("--data", help="folder with train/; not for embedded")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="make the cells of this call anew")
    parser.add_argument("--limit", type=int, default=0, help=f"images; {SMALL}, of Imagenette {IMAGENETTE}, by default")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--model", default="wrn-16-1")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if arguments.set != "embedded" and not arguments.data:
        parser.error(f"{arguments.set} needs --data DIR")
    photographs = arguments.set == "imagenette"
    arguments.limit = arguments.limit or (IMAGENETTE if photographs else SMALL)
    data = load(arguments.data or "embedded", image_size=SIDE if photographs else None).train
    code = commit()
    cells = {(cell["kind"], cell["seed"]): cell for cell in kept_cells(arguments.json)}
    for kind, seed in itertools.product(arguments.kinds, arguments.seeds):
        if (kind, seed) in cells and not arguments.again:
            continue
        cell = cells[kind, seed] = measure(data, kind, seed, arguments) | {"commit": code}
        keys = [f"look_{what}" for what in ("strength", "gain", "channels")]
        keys += [f"end_{what}" for what in KINDS_OF_CUTS]
        figures = " ".join(f"{key} {cell[key]:.2f}" for key in keys if cell.get(key) is not None)
        figures += "".join(f" ALARM at the {name}" for name in ("look", "end") if cell[f"{name}_alarm"])
        print(f"{kind:12s} seed {seed}: {figures}", flush=True)
        ordered = sorted(cells.values(), key=lambda cell: (KINDS.index(cell["kind"]), cell["seed"]))
        content = {
            **made_by(arguments.device),
            "alarm": Filter().alarm,
            "false_alarms": sum(max(cell["look_alarm"], cell["end_alarm"]) for cell in ordered),
            "null": null_of(ordered),
            "cells": ordered,
        }
        write(arguments.json, content)


if __name__ == "__main__":
    main()
