"""How long a run will take, and how much it needs: measured on a sample of the images, with the network of the run."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from statistics import median

import torch

from antibackdoor.config import DataConfig
from antibackdoor.data.arrays import load_npz
from antibackdoor.data.cache import default_cache_dir
from antibackdoor.data.listed import list_images
from antibackdoor.data.reader import Reader
from antibackdoor.data.sources import EMBEDDED, HUB, load
from antibackdoor.defences import Defence
from antibackdoor.defences.none import NoDefence
from antibackdoor.defences.witnesses import Witnesses, flow, observe
from antibackdoor.models import BuildModel
from antibackdoor.progress import Progress
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Runtime, Trainer, TrainPlan
from antibackdoor.types import ImageSet

__all__ = ["LOOK", "Contents", "Duration", "Pace", "before_long", "duration_of", "in_words", "look_into"]

SAMPLE = 256
LONG = 400_000  # images times epochs, from which a run says as it begins how long it will take
BATCHES = 4  # that are timed at a time, after as many that warm up
REPEATS, PATIENCE = 5, 4.0  # times that they are timed, where all together take no longer than so many seconds
# Other work is taken to hold the threads up where they had less of the processor than this share of the clock.
_ALONE = 0.8
# What a look takes, in trainings of the detector: the lowest, the median and the highest of the sets of
# benchmarks/results/defences_*_cpu.json that had the machine to themselves (the clock of all phases shows no more than
# the processor) and in which planting took under a second. Of those the look took the processor time of the whole
# default, less the undefended training of the same set as often as it was trained after the look; the detector, 20
# times its fastest epoch. tests/test_estimating.py takes it from the records again. All in all the default took 1.8 to
# 2.1 undefended trainings there.
LOOK = (1.4, 1.6, 1.9)
_BUSY = 1.5  # times as long, from which on a run says that the machine is busy
GIB = 2**30


@dataclass(frozen=True, eq=False)
class Contents:
    """What a source holds, before it is read as a whole.

    Attributes:
        sample: Some of the images.
        images: How many there are to train on.
        test_images: How many there are to measure on.
        sizes: Images of each class.
        reading: Seconds that reading all takes, where it is not in the cache.
    """

    sample: ImageSet
    images: int
    test_images: int
    sizes: dict[str, int]
    reading: float

    def lines(self) -> list[str]:
        """Return what to tell of it."""
        channels, height, width = self.sample.shape
        fewest, most = min(self.sizes, key=self.sizes.__getitem__), max(self.sizes, key=self.sizes.__getitem__)
        pixels = (self.images + self.test_images) * prod(self.sample.shape)
        cache = default_cache_dir()
        there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
        return [
            f"images: {self.images:,} to train on, {self.test_images:,} to measure on",
            f"classes: {len(self.sizes)}, of {self.sizes[fewest]:,} ({fewest}) to {self.sizes[most]:,} ({most}) images",
            f"size: {width}x{height}, {'grey' if channels == 1 else 'RGB'}, by a sample of {len(self.sample):,}",
            f"reading: {in_words(self.reading)} where they are not in the cache",
            f"disk: {pixels / GIB:.2f} GiB for the decoded images in {cache}, "
            f"{shutil.disk_usage(there).free / GIB:.1f} GiB are free",
        ]


@dataclass(frozen=True)
class Duration:
    """How long a run trains on a machine that does nothing else.

    Attributes:
        least: Seconds, where nothing is found.
        usual: Seconds, where nothing is found and the look takes long.
        most: Seconds, where poison is found late; None where that is not known.
        memory: Bytes of the process, without the images, which are mapped from the disk; None where the system does
            not say.
        slower: How many times as long it takes at the pace of this moment, with what else the machine does.
    """

    least: float
    usual: float
    most: float | None
    memory: int | None
    slower: float = 1.0

    def lines(self) -> list[str]:
        """Return what to tell of it."""
        needs = "not known on this system" if self.memory is None else f"about {self.memory / GIB:.1f} GiB"
        return [self.training(), f"memory: {needs}, and the images as far as there is room"]

    def training(self) -> str:
        """Return how long it trains, in words."""
        about = f"training: about {_range(self.least, self.usual)}"
        if self.most is None:
            about += " for each training that the defence makes"
        elif self.most > self.usual:
            about += f" on clean images, up to {in_words(self.most)} with poison"
        if self.slower < _BUSY:
            return about
        return f"{about}; {self.slower:.0f} times as long while the machine is as busy as now"


@dataclass(frozen=True)
class Pace:
    """Seconds that one image takes in one epoch.

    Attributes:
        least: At the fastest, on a machine that does nothing else.
        usual: The median of that.
        now: The median by the clock.
    """

    least: float
    usual: float
    now: float


def look_into(config: DataConfig, progress: Progress) -> Contents:
    """List a source and decode a sample of it; nothing is written.

    Args:
        config: What to look into.
        progress: Told of what is left out and which size is chosen.

    Raises:
        DataError: As for reading it, as far as the sample shows.
    """
    named = config.source == EMBEDDED or config.source.startswith(HUB)
    alone = config.test is not None
    splits = None if named else list_images(config.source, progress, skip_bad=config.skip_bad, alone=alone)
    if splits is None:
        started = time.perf_counter()
        loaded = load(config.source, image_size=config.image_size, progress=progress)
        train, count = loaded.train, len(loaded.train)
        own = 0 if loaded.test is None else len(loaded.test)
        labels, reading = train.labels, time.perf_counter() - started
        sample = train.select(torch.arange(0, count, -(-count // SAMPLE)))
    else:
        reader = Reader(config.image_size, config.skip_bad, default_cache_dir(), progress)
        taken = reader.sample(splits.train, SAMPLE)
        count, own = len(splits.train), 0 if splits.test is None else len(splits.test)
        labels, sample = torch.tensor(splits.train.labels), taken.data
        reading = taken.seconds * (count + own)
    if config.test is not None:
        given = list_images(config.test, progress, skip_bad=config.skip_bad, whole=True)
        own = len(load_npz(Path(config.test), training=False)[0] if given is None else given.train)
    sizes = dict(zip(sample.classes, torch.bincount(labels, minlength=sample.num_classes).tolist(), strict=True))
    limit, most = config.limit or count, config.limit_test or own
    return Contents(sample, min(count, limit), min(own, most), sizes, reading)


def duration_of(
    sample: ImageSet,
    images: int,
    *,
    build_model: BuildModel,
    plan: TrainPlan,
    defence: Defence,
    runtime: Runtime,
    scan_only: bool,
) -> Duration:
    """Time a few updates and say how long a run will train.

    Args:
        sample: Some images of the set.
        images: How many the set has.
        build_model: Builds the network of the run.
        plan: Of ordinary training.
        defence: The method.
        runtime: Where it computes.
        scan_only: It is a scan.

    Returns:
        The least, the usual and the most; other methods than the default and ordinary training make trainings of their
        own number.
    """
    whole = images * plan.epochs
    if scan_only and isinstance(defence, Witnesses):
        own = Pace(0.0, 0.0, 0.0)
    else:
        own = _pace(sample, build_model, plan, runtime)
    if isinstance(defence, Witnesses):
        look = observe.detector_plan(images)
        pace, each = _pace(sample, observe.detector_for(sample), look, runtime), images * look.epochs
        least, _, longest = (times * each for times in LOOK)
        usual = longest * pace.usual + whole * own.usual
        at_this = longest * pace.now + whole * own.now
        memory = _memory(images, plan.epochs + look.epochs)
        most = longest * pace.usual + flow.ROUNDS * whole * own.usual
        return Duration(least * pace.least + whole * own.least, usual, most, memory, at_this / usual)
    usual = own.usual * whole
    known = usual if isinstance(defence, NoDefence) else None
    return Duration(own.least * whole, usual, known, _memory(images, plan.epochs), own.now / own.usual)


def before_long(
    data: ImageSet, *, build_model: BuildModel, plan: TrainPlan, defence: Defence, runtime: Runtime, scan_only: bool
) -> str | None:
    """Return how long a run will train, in words, where that takes long; else None, and nothing is measured.

    Args:
        data: The images to train on.
        build_model: See :func:`duration_of`.
        plan: See :func:`duration_of`.
        defence: See :func:`duration_of`.
        runtime: See :func:`duration_of`.
        scan_only: See :func:`duration_of`.
    """
    if len(data) * plan.epochs < LONG:
        return None
    sample = data.select(torch.arange(0, len(data), -(-len(data) // SAMPLE)))
    found = duration_of(
        sample,
        len(data),
        build_model=build_model,
        plan=plan,
        defence=defence,
        runtime=runtime,
        scan_only=scan_only,
    )
    return found.training()


def in_words(seconds: float) -> str:
    """Return a time as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _range(least: float, most: float) -> str:
    """Return two times as "40 s to 2 min", "3 to 5 min" or, where they are alike, "4 min"."""
    low, high = in_words(least), in_words(most)
    (number, unit), other = low.split(), high.split()
    if low == high:
        return high
    return f"{number} to {high}" if unit == other[1] else f"{number} {unit} to {high}"


def _pace(sample: ImageSet, build_model: BuildModel, plan: TrainPlan, runtime: Runtime) -> Pace:
    """Time a training of a few updates on the sample.

    By the clock, a processor that others use too says little: of two threads one waits for the other, and the longer
    the busier the machine is. So where they were held up, the updates are timed with one thread by the processor time
    that it took, and what is less counts: that, or the clock.
    """
    clock, processor = _timed(sample, build_model, plan, runtime)
    now, series = median(clock), clock
    threads = torch.get_num_threads()
    if runtime.device.type == "cpu" and runtime.first(median(processor) < _ALONE * threads * now):
        alone = processor
        if threads > 1:
            torch.set_num_threads(1)
            try:
                _, alone = _timed(sample, build_model, plan, runtime)
            finally:
                torch.set_num_threads(threads)
        series = min(clock, alone, key=median)
    return Pace(min(series), median(series), now)


def _timed(
    sample: ImageSet, build_model: BuildModel, plan: TrainPlan, runtime: Runtime
) -> tuple[list[float], list[float]]:
    """Return the seconds an image by the clock, and of the processor, of each repeat."""
    data = sample.select(torch.arange(BATCHES * plan.batch_size) % len(sample))
    ends: list[tuple[float, float]] = []

    def train(repeats: int) -> tuple[list[float], list[float]]:
        ends[:] = [(time.perf_counter(), time.process_time())]
        trainer = Trainer(runtime, Seeds(0), track=lambda *_: ends.append((time.perf_counter(), time.process_time())))
        model = build_model(torch.Generator().manual_seed(0))
        trainer.fit(model, data, Phase("estimate", plan.but(epochs=1 + repeats), stop_on_nonfinite=True))
        if len(ends) > 2:  # the first epoch warmed up; a training that diverges in it has no more
            del ends[0]
        else:
            ends[1:] = [(time.perf_counter(), time.process_time())]
        taken = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(ends)]
        return [clock / len(data) for clock, _ in taken], [processor / len(data) for _, processor in taken]

    once = train(1)
    quick = runtime.first(once[0][0] * len(data) * (1 + REPEATS) < PATIENCE)
    return train(REPEATS) if quick else once


def _memory(images: int, epochs: int) -> int | None:
    """Return the most that this process took so far, and the losses of all images in all epochs; None on Windows."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit + 4 * images * epochs
