"""Time this library against a slow transcription of ABL's released code, in turn, on one machine.

Usage: python benchmarks/speed.py [--data cifar10] [--rounds 5] [--json FILE]

Three things are timed, with the same network (WRN-16-1), the same images and the same batch size on both sides: an
epoch of stage one (batch-mean flooding, no augmentation), an epoch of fine-tuning (crop, flip, cutout), and a pass that
gives the loss of every image. Each round runs naive and ours one after the other, so a ratio compares neighbours in
time; the figures are medians over the rounds. The naive side (``naive.py``) runs with 0 and with 2 loader processes in
every round, and whichever is faster counts.

Where stage one runs, our per-sample losses come with the epoch, at no extra pass; what is compared under "scoring" is
nevertheless a whole pass of ours in eval mode.

``--gpu-epochs E`` times something else: E epochs of ABL in all (isolate, fine-tune, unlearn), compiled, ours alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import naive
import torch
from record import command, write

from antibackdoor.data.sources import from_arrays, load, subsample
from antibackdoor.defences import AblModified
from antibackdoor.models import Normalised, builder_from, channel_statistics
from antibackdoor.ops.augment import AugmentName
from antibackdoor.ops.objectives import ce, flood
from antibackdoor.pipeline import versions
from antibackdoor.seeds import Seeds
from antibackdoor.training import Objective, Phase, Runtime, Trainer, TrainPlan, logits_of, mean_loss
from antibackdoor.types import ImageSet, Json

LEVEL, RATE, NETWORK = 0.5, 0.1, "wrn-16-1"
NAMES = ("lga_epoch", "finetune_epoch", "scoring")


@dataclass(frozen=True)
class Contest:
    """One task, done both ways.

    Attributes:
        name: Key of the result.
        naive: The naive ways by number of loader processes; each returns its seconds.
        ours: Our way; returns its seconds.
    """

    name: str
    naive: dict[int, Callable[[], float]]
    ours: Callable[[], float]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@cache
def synthetic(count: int, seed: int) -> ImageSet:
    """Draw 32x32 colour images of ten classes: a smooth pattern for each class under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    coarse = torch.rand((10, 3, 4, 4), generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    noise = torch.rand((count, 3, 32, 32), generator=generator)
    pixels = (patterns[labels].mul_(0.5).add_(noise, alpha=0.5) * 255).to(torch.uint8)
    return from_arrays(pixels.permute(0, 2, 3, 1).numpy(), labels.numpy())


def images_of(args: argparse.Namespace, count: int) -> ImageSet:
    """Return the images to train on, the user's or synthetic ones."""
    if args.data is None:
        return synthetic(count, args.seed)
    whole = load(args.data).train
    if count >= len(whole):
        return whole
    return subsample(whole, count, Seeds(args.seed).generator("sample"))


def contests_of(data: ImageSet, args: argparse.Namespace, runtime: Runtime) -> list[Contest]:
    """Set up the three tasks: data in memory, networks built, from the same initial weights on both sides."""
    seeds = Seeds(args.seed)
    build, _ = builder_from(NETWORK, data)
    mean, std = (tuple(figures.tolist()) for figures in channel_statistics(data.images))
    plain, augmented = naive.evaluation_transforms(mean, std), naive.training_transforms(mean, std)
    pixels, labels = data.images.numpy(), data.labels.tolist()
    trainer = Trainer(runtime, seeds)
    few = min(args.score_images, len(data))

    def naive_epochs(transforms: list[naive.Transform], flood_level: float | None) -> dict[int, Callable[[], float]]:
        # The body of our network: normalisation is a transform on this side.
        model = cast(Normalised, build(seeds.generator("init"))).body
        optimizer = naive.optimizer_of(model, RATE)
        dataset = naive.NaiveImages(pixels, labels, transforms)

        def epoch_with(workers: int) -> Callable[[], float]:
            loader = naive.loader_of(dataset, args.batch_size, shuffle=True, workers=workers)
            return lambda: timed(lambda: naive.train_epoch(model, loader, optimizer, flood_level=flood_level))

        return {workers: epoch_with(workers) for workers in args.workers}

    def naive_scoring() -> dict[int, Callable[[], float]]:
        model = cast(Normalised, build(seeds.generator("init"))).body
        dataset = naive.NaiveImages(pixels, labels, plain)

        def pass_with(workers: int) -> Callable[[], float]:
            loader = naive.loader_of(dataset, 1, shuffle=False, workers=workers)
            return lambda: naive.losses_at_batch_one(model, loader, at_most=few)[1] / few * len(data)

        return {workers: pass_with(workers) for workers in args.workers}

    def our_epochs(name: str, augment: tuple[AugmentName, ...], objective: Objective) -> Callable[[], float]:
        model = build(seeds.generator("init"))
        plan = TrainPlan(1, args.batch_size, RATE, weight_decay=1e-4, schedule="constant", augment=augment)
        return lambda: timed(lambda: trainer.fit(model, data, Phase(name, plan), objective=objective))

    def our_scoring() -> Callable[[], float]:
        model = runtime.place(build(seeds.generator("init")))
        return lambda: timed(lambda: ce(logits_of(model, data, runtime), data.labels))

    return [
        Contest(
            "lga_epoch",
            naive_epochs(plain, LEVEL),
            our_epochs("isolate", (), lambda step: flood(step.losses.mean(), LEVEL)),
        ),
        Contest(
            "finetune_epoch",
            naive_epochs(augmented, None),
            our_epochs("fine-tune", ("crop", "flip", "cutout"), mean_loss),
        ),
        Contest("scoring", naive_scoring(), our_scoring()),
    ]


def run_contest(contest: Contest, rounds: int) -> dict[str, Json]:
    """Warm both sides up, then time them in turn.

    The naive side runs with every number of loader processes in every round; the one with the lowest median counts.

    Returns:
        Seconds of each round on both sides, the ratio of each round, and the seconds by loader processes.
    """
    ways = contest.naive
    for way in (contest.ours, *ways.values()):
        way()
    slow: dict[int, list[float]] = {workers: [] for workers in ways}
    fast: list[float] = []
    for _ in range(rounds):
        for workers, way in ways.items():
            slow[workers].append(way())
        fast.append(contest.ours())
    workers = min(slow, key=lambda key: statistics.median(slow[key]))
    ratios = [s / f for s, f in zip(slow[workers], fast, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratios": [*ratios],
        "naive_seconds": [*slow[workers]],
        "our_seconds": [*fast],
        "naive_workers": workers,
        "naive_seconds_by_workers": {str(key): [*seconds] for key, seconds in slow.items()},
    }


def table_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as lines of text."""
    lines = [f"{'':16}{'naive s: median (min, max)':>32}{'ours s: median (min, max)':>32}{'ratio':>8}{'loaders':>9}"]
    for name, result in results.items():
        cells = [
            f"{statistics.median(result[side]):.3f} ({min(result[side]):.3f}, {max(result[side]):.3f})"
            for side in ("naive_seconds", "our_seconds")
        ]
        lines.append(f"{name:16}{cells[0]:>32}{cells[1]:>32}{result['ratio']:>8.2f}{result['naive_workers']:>9}")
    return "\n".join(lines)


def compare(args: argparse.Namespace) -> dict[str, Json]:
    """Run the three contests and print what came out."""
    runtime = Runtime.create("cpu", precision=args.precision, compile_mode=args.compile)
    data = images_of(args, args.images)
    few = min(args.score_images, len(data))
    source = "synthetic images (no --data given)" if args.data is None else data.name
    device = runtime.describe()
    print(f"{len(data):,} images {data.shape} of {source}; {NETWORK}, batch size {args.batch_size}")
    print(f"{device['name']}, {device['threads']} threads; ours in {device['reason']}; naive in float32")
    print(", ".join(f"{name} {number}" for name, number in versions().items()))
    if few < len(data):
        print(f"naive scoring runs on the first {few:,} images and is scaled to {len(data):,}")
    results = {contest.name: run_contest(contest, args.rounds) for contest in contests_of(data, args, runtime)}
    print(table_of(results))
    print(
        "seconds of one pass over all images; ratio: naive / ours, median over the rounds' own ratios; "
        "loaders: loader processes of the naive side, the faster of those tried"
    )
    return {
        **{name: results[name]["ratio"] for name in NAMES},
        "details": {
            "results": results,
            "rounds": args.rounds,
            "images": len(data),
            "image_shape": [*data.shape],
            "source": source if args.data is None else "folder or file given by --data",
            "batch_size": args.batch_size,
            "model": NETWORK,
            "naive_scoring_images": few,
            "naive_scoring_scaled": few < len(data),
            "device": device,
            "versions": dict(versions()),
            "command": command(),
        },
    }


def abl_on_device(args: argparse.Namespace) -> dict[str, Json]:
    """Time all epochs of ABL, ours alone, on the device and compiled.

    The seconds without compilation are the whole less what the first epoch of each phase took above the median of its
    other epochs.
    """
    runtime = Runtime.create(args.device, precision=args.precision, compile_mode=args.compile)
    data = images_of(args, args.images)
    isolation, unlearning = min(10, args.gpu_epochs // 3), min(5, args.gpu_epochs // 3)
    plan = TrainPlan(
        args.gpu_epochs - isolation - unlearning,
        args.batch_size,
        RATE * args.batch_size / 128 if args.scale_rate else RATE,
        schedule="multistep",
        augment=("crop", "flip", "cutout"),
    )
    defence = AblModified(signal="loss", isolation_epochs=isolation, unlearn_epochs=unlearning)
    build, _ = builder_from(NETWORK, data)
    seeds = Seeds(args.seed)
    trainer = Trainer(runtime, seeds)
    started = time.perf_counter()
    outcome = defence.run(data, build_model=build, fit=trainer, plan=plan, seeds=seeds)
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    including = time.perf_counter() - started
    phases: dict[str, Json] = {}
    compiling = 0.0
    for history in outcome.histories:
        epochs = history.seconds.tolist()
        extra = max(0.0, epochs[0] - statistics.median(epochs[1:])) if len(epochs) > 1 else 0.0
        compiling += extra
        accuracy = float(history.accuracy[-1])
        phases[history.phase] = {"seconds": epochs, "first_epoch_extra": extra, "accuracy": accuracy}
        print(f"{history.phase:10}{len(epochs):4} epochs {sum(epochs):9.2f} s, of it start-up {extra:.2f} s")
    device = runtime.describe()
    source = "synthetic images (no --data given)" if args.data is None else data.name
    print(f"{len(data):,} images of {source}; {NETWORK}, batch size {args.batch_size}, compile {args.compile}")
    print(f"{device['name']}; {device['reason']}; torch {torch.__version__}")
    print(f"{args.gpu_epochs} epochs: {including - compiling:.2f} s without, {including:.2f} s with compilation")
    return {
        "seconds_excluding_compile": including - compiling,
        "seconds_including_compile": including,
        "details": {
            "epochs": args.gpu_epochs,
            "phases": phases,
            "images": len(data),
            "source": source if args.data is None else "folder or file given by --data",
            "batch_size": args.batch_size,
            "lr": plan.lr,
            "model": NETWORK,
            "device": device,
            "versions": dict(versions()),
            "command": command(),
        },
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="folder or .npz to draw images from (default: synthetic 32x32 images)")
    parser.add_argument("--images", type=int, help="how many (default 5,000; 50,000 with --gpu-epochs)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="loader processes to try on the naive side"
    )
    parser.add_argument("--score-images", type=int, default=1000, help="naive scoring runs on so many and is scaled")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of our side")
    parser.add_argument("--compile", choices=["auto", "off", "on", "graphs"], help="default off; on with --gpu-epochs")
    parser.add_argument("--scale-rate", action="store_true", help="with --gpu-epochs: rate / batch constant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--gpu-epochs", type=int, help="time so many epochs of ABL in all, ours alone (3 at least)")
    parser.add_argument("--device", default="auto", help="for --gpu-epochs")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.score_images < 1:
        parser.error("--rounds and --score-images must be at least 1")
    if args.gpu_epochs is not None and args.gpu_epochs < 3:
        parser.error("--gpu-epochs must be at least 3: one for each stage")
    whole = args.gpu_epochs is not None
    args.images = args.images or (50_000 if whole else 5_000)
    args.compile = args.compile or ("on" if whole else "off")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    result = compare(args) if args.gpu_epochs is None else abl_on_device(args)
    if args.json:
        write(args.json, result)


if __name__ == "__main__":
    main()
