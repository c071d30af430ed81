r"""Record a bank of evidence: trainings on clean and on poisoned sets, kept so that a decision is tried in a minute.

    python benchmarks/bank/record.py --data DIR --bank BANK [--only PATTERN ...] [--again]

`benchmarks/bank/runs.yaml` lists the runs and the part (development or validation) each belongs to; it was written
before any of them was looked at. DIR holds cifar10/, fashion-mnist/, gtsrb/ and imagenette/, each with train/ and
test/. BANK, outside the repository, gets one .npz a part, written whole; what is there is not made again.

A run has two parts, a file each, on the same images. "detector" trains without augmentation for few epochs and asks the
frozen encoder; "ordinary" trains by the ordinary plan, with augmentation. Both ask for the loss of every image by a
forward pass without augmentation after epochs. Kept are: losses as recorded and by the passes (float16), what was
predicted, the networks' weights, features of the encoder, observed labels, rows of the source, the truth, accuracy and
attack success, the settings and a digest of the code. Images are drawn from one half of a source's training split in
development, from the other in validation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from antibackdoor.api import load_plugin
from antibackdoor.attacks import ATTACKS, Attack, poison, triggered_test
from antibackdoor.data.sources import Loaded, load, subsample
from antibackdoor.defences.encoding import encode
from antibackdoor.defences.witnesses.observe import train_in_parts
from antibackdoor.evaluation import evaluate
from antibackdoor.files import atomic_write
from antibackdoor.models import builder_from
from antibackdoor.models.encoders import DEFAULT_ENCODER, encoder_from
from antibackdoor.ops.objectives import ce
from antibackdoor.pipeline import versions
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, Trainer, TrainPlan, logits_of
from antibackdoor.types import ImageSet, PoisonedSet

HERE = Path(__file__).parent
PLUGINS = (HERE / "attacks.py", HERE / "validation_attacks.py", HERE.parent / "unseen.py")
SIDES = {"imagenette": 32, "gtsrb": 32}
TEST_IMAGES = 1000
# Epochs of the two trainings, and after which of the ordinary one a forward pass is made.
ORDINARY, PLAIN = 20, 20
PARTS = ("detector", "ordinary")
PASSES = (1, 2, 3, 4, 6, 8, 10, 13, 16, 20)


def source(run: dict, root: Path, known: dict[tuple[str, int | None], Loaded]) -> Loaded:
    """Load a run's source, its images at the side that the run or the bank has them at; ``known`` keeps it."""
    name, side = run["data"], run.get("side", SIDES.get(run["data"]))
    if (name, side) not in known:
        known[name, side] = load(root / name, image_size=side)
    return known[name, side]


def drawn(run: dict, loaded: Loaded) -> tuple[Loaded, Tensor]:
    """Return the run's images and classes, and the rows (int64) of the source's training split."""
    seeds = Seeds(run["seed"])
    every = loaded.train.num_classes
    count = run.get("classes", every)
    chosen = torch.randperm(every, generator=seeds.generator("classes"))[:count].sort().values
    halves = torch.randperm(len(loaded.train), generator=torch.Generator().manual_seed(20261127)) % 2
    allowed = torch.isin(loaded.train.labels, chosen) & (halves == (run["part"] == "validation"))
    rows = allowed.nonzero().squeeze(1)
    position = torch.zeros(every, dtype=torch.int64)
    position[chosen] = torch.arange(count)
    names = tuple(loaded.train.classes[i] for i in chosen)

    def part(data: ImageSet, index: Tensor, limit: int, stream: str) -> tuple[ImageSet, Tensor]:
        images = data.images[index]
        numbered = tuple(str(i) for i in index.tolist())
        whole = ImageSet(images, position[data.labels[index]], names, numbered, data.name)
        small = subsample(whole, min(limit, len(whole)), seeds.generator(stream))
        return small, torch.tensor([int(i) for i in small.ids])

    train, taken = part(loaded.train, rows, run["images"], "images")
    test_rows = torch.isin(loaded.test.labels, chosen).nonzero().squeeze(1)
    test, _ = part(loaded.test, test_rows, TEST_IMAGES, "test")
    return Loaded(train, test), taken


def troubled(data: ImageSet, trouble: dict, seeds: Seeds) -> ImageSet:
    """Return the set with natural trouble that is no poison, of the same length but for a long tail."""
    generator = seeds.generator("trouble")
    kind, share = trouble["kind"], trouble.get("share", 0.05)
    count = round(share * len(data))
    order = torch.randperm(len(data), generator=generator)
    if kind == "noise":
        labels = data.labels.clone()
        shift = torch.randint(1, data.num_classes, (count,), generator=generator)
        labels[order[:count]] = (labels[order[:count]] + shift) % data.num_classes
        return dataclasses.replace(data, labels=labels)
    if kind == "confusion":  # wrong labels between two classes alone, one way
        one = int(torch.randint(data.num_classes, (), generator=generator))
        own = order[data.labels[order] == one][:count]
        labels = data.labels.clone()
        labels[own] = (one + 1) % data.num_classes
        return dataclasses.replace(data, labels=labels)
    if kind == "duplicates":
        own = order[data.labels[order] == int(torch.randint(data.num_classes, (), generator=generator))]
        images = data.images.clone()
        take = min(count, len(own) - 20)
        copied = images[own[-10:]].repeat(-(-take // 10), 1, 1, 1)[:take].int()
        noise = torch.randint(-6, 7, copied.shape, generator=generator)
        images[own[:take]] = (copied + noise).clamp(0, 255).to(torch.uint8)
        return dataclasses.replace(data, images=images)
    if kind == "tail":
        kept = []
        for label in range(data.num_classes):
            own = (data.labels == label).nonzero().squeeze(1)
            kept.append(own[: max(40, round(len(own) * (1 - 0.85 * label / (data.num_classes - 1))))])
        return data.select(torch.cat(kept).sort().values)
    if kind == "merged":  # two kinds of things under every label
        half = data.num_classes // 2
        return dataclasses.replace(data, labels=data.labels % half, classes=data.classes[:half])
    raise ValueError(kind)


def plant(run: dict, loaded: Loaded, seeds: Seeds, fit: Trainer) -> tuple[PoisonedSet, list[PoisonedSet]]:
    """Poison with every attack of the run in turn; an image is poisoned or covered by one at most."""
    build_model, _ = builder_from(run.get("model", "wrn-10-1"), loaded.train)
    none = torch.zeros(len(loaded.train), dtype=torch.bool)
    whole = PoisonedSet(loaded.train, none, none, loaded.train.labels, None)
    triggered = []
    for number, chosen in enumerate(run.get("attacks", [])):
        params = {key: value for key, value in chosen.items() if key not in {"name", "rate", "rate_of"}}
        attack: Attack = ATTACKS.build(chosen["name"], params).prepare(
            loaded.train, build_model=build_model, fit=fit, seeds=seeds.child(f"attack {number}")
        )
        taken = whole.poison | whole.cover
        one = poison(
            loaded.train,
            attack,
            rate=chosen["rate"],
            rate_of=chosen.get("rate_of", "dataset"),
            generator=seeds.generator(f"poison {number}"),
        )
        fresh, cover = one.poison & ~taken, one.cover & ~taken
        changed = fresh | cover
        images, labels = whole.observed.images.clone(), whole.observed.labels.clone()
        images[changed], labels[changed] = one.observed.images[changed], one.observed.labels[changed]
        observed = dataclasses.replace(whole.observed, images=images, labels=labels)
        whole = PoisonedSet(observed, whole.poison | fresh, whole.cover | cover, whole.original_labels, one.target)
        triggered.append(triggered_test(loaded.test, attack))
    return whole, triggered


class Recorder:
    """Trains one network in parts and keeps the losses of forward passes between them."""

    def __init__(self, fit: Trainer, data: ImageSet, model: nn.Module, plan: TrainPlan, name: str) -> None:
        self.fit, self.data, self.model, self.plan, self.name = fit, data, model, plan, name
        self.recorded: list[np.ndarray] = []
        self.passed: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.seconds = {"train": 0.0, "pass": 0.0}

    def run(self, passes: tuple[int, ...], keep: tuple[int, ...]) -> None:
        """Train to the end of the plan, with a pass after each of these epochs, weights kept after some."""
        started = time.perf_counter()
        for last, history in train_in_parts(self.model, self.data, self.plan, passes, fit=self.fit, name=self.name):
            self.recorded.append(history.losses)
            between = time.perf_counter()
            logits = logits_of(self.model, self.data, self.fit.runtime)
            self.passed.append(ce(logits, self.data.labels).numpy())
            self.predicted.append(logits.argmax(1).to(torch.int16).numpy())
            self.seconds["train"] += between - started
            if last in keep:
                self.weights[last] = {key: value.clone() for key, value in self.model.state_dict().items()}
            started = time.perf_counter()
            self.seconds["pass"] += started - between

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was kept; losses as logarithms, so that float16 does them no harm."""
        logs = {"recorded": np.concatenate(self.recorded), "passed": np.stack(self.passed)}
        found = {
            f"{self.name}_{key}": np.log(np.maximum(value, 1e-6)).astype(np.float16) for key, value in logs.items()
        }
        found[f"{self.name}_predicted"] = np.stack(self.predicted)
        for epoch, weights in self.weights.items():
            for key, value in weights.items():
                found[f"{self.name}_weights_{epoch}/{key}"] = value.numpy().astype(
                    np.float16 if value.is_floating_point() else value.numpy().dtype
                )
        return found


def prepared(run: dict, loaded: Loaded) -> tuple[Loaded, Tensor, PoisonedSet, list[PoisonedSet]]:
    """Return a run's clean images, their rows (int64) of the source, what is observed of them, and triggered tests."""
    seeds = Seeds(run["seed"])
    part, rows = drawn(run, loaded)
    if "trouble" in run:
        part = Loaded(troubled(part.train, run["trouble"], seeds), part.test)
        rows = torch.tensor([int(i) for i in part.train.ids])
        if part.train.num_classes < part.test.num_classes:
            folded = part.test.labels % part.train.num_classes
            test = dataclasses.replace(part.test, labels=folded, classes=part.train.classes)
            part = Loaded(part.train, test)
    surrogates = Trainer(Runtime.create("cpu"), seeds.child("surrogate"))
    return part, rows, *plant(run, part, seeds, surrogates)


def record(run: dict, loaded: Loaded, kind: str, features: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Make one run: its "detector" part (plain training, encoder, labels, truth) or its "ordinary" training.

    Args:
        run: As in runs.yaml.
        loaded: Its source.
        kind: Which part.
        features: Of the encoder, where they are known from an older record of the same images.
    """
    seeds, runtime = Seeds(run["seed"]), Runtime.create("cpu")
    fit = Trainer(runtime, seeds)
    part, rows, whole, triggered = prepared(run, loaded)
    data = whole.observed
    build_model, _ = builder_from(run.get("model", "wrn-10-1"), data)
    augment = ("crop",) if run["data"] == "gtsrb" else ("crop", "flip")
    # Small sets get about as many updates as larger ones would.
    batch = run.get("batch", 32 if len(data) <= 3000 else 64)
    if kind == "ordinary":
        plan = TrainPlan(epochs=run.get("epochs", ORDINARY), batch_size=batch, augment=augment)
        passes, keep = tuple(e for e in PASSES if e <= plan.epochs), (plan.epochs // 2, plan.epochs)
        stream = "init"
    else:
        plan = TrainPlan(epochs=PLAIN, batch_size=batch, augment=())
        passes, keep, stream = tuple(range(1, PLAIN + 1)), (PLAIN // 2, PLAIN), "plain init"
    recorder = Recorder(fit, data, build_model(seeds.generator(stream)), plan, "plain" if kind == "detector" else kind)
    recorder.run(passes, keep)
    seconds = dict(recorder.seconds)
    arrays = recorder.arrays()
    if kind == "detector":
        started = time.perf_counter()
        if features is None:
            encoder = encoder_from(DEFAULT_ENCODER, runtime.device)
            features = encode(encoder, data, runtime).astype(np.float16)
        arrays["encoder"] = features
        seconds["encoder"] = time.perf_counter() - started
        arrays |= {
            "labels": data.labels.numpy().astype(np.int16),
            "original": whole.original_labels.numpy().astype(np.int16),
            "poison": whole.poison.numpy(),
            "cover": whole.cover.numpy(),
            "rows": rows.numpy().astype(np.int32),
        }
    facts = {
        "run": run,
        "accuracy": evaluate(recorder.model, runtime, test=part.test).ca,
        "success": [evaluate(recorder.model, runtime, triggered=one).asr for one in triggered],
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    shown = " ".join(f"{key} {value:.0f}" for key, value in seconds.items())
    success = " ".join(f"{value:.2f}" for value in facts["success"])
    print(
        f"{run['name']} {kind}: accuracy {facts['accuracy']:.3f}, success {success or '-'}, seconds {shown}", flush=True
    )
    return {"facts": np.array(json.dumps(facts)), **arrays}


def main() -> None:
    """Make the runs that the bank lacks, in the order of the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="one after the other, each of all runs"
    )
    parser.add_argument("--features", type=Path, help="an older bank of the same runs, whose encoder features are kept")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    arguments.bank.mkdir(parents=True, exist_ok=True)
    for plugin in PLUGINS:
        load_plugin(plugin)
    sources: dict[tuple[str, int | None], Loaded] = {}
    runs = yaml.safe_load((HERE / "runs.yaml").read_text(encoding="utf-8"))
    chosen = [run for run in runs if any(fnmatch(run["name"], pattern) for pattern in arguments.only)]
    for kind, run in ((kind, run) for kind in arguments.parts for run in chosen):
        path = arguments.bank / f"{run['name']}.{kind}.npz"
        if path.exists() and not arguments.again:
            continue
        try:
            older = arguments.features / path.name if arguments.features else None
            features = np.load(older)["encoder"] if older and older.exists() else None
            arrays = record(run, source(run, arguments.data, sources), kind, features)
        except Exception as error:  # one run that cannot be made costs no other
            print(f"{run['name']} {kind}: FAILED {type(error).__name__}: {error}", flush=True)
            continue
        atomic_write(path, partial(np.savez, **arrays))


if __name__ == "__main__":
    main()
