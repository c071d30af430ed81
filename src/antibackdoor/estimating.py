"""How long a run will take, and how much it needs: measured on a sample of the images, with the network of the run."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

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

__all__ = ["Contents", "Duration", "before_long", "duration_of", "in_words", "look_into"]

SAMPLE = 256
LONG = 400_000  # images times epochs, from which a run says as it begins how long it will take
BATCHES = 4  # that are timed, after as many that warm up
# Passes, encoder and evidence take about as long as the training of the detector, by the bank of evidence.
_LOOK = 2.0
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
    """How long a run trains.

    Attributes:
        least: Seconds, where nothing is found.
        most: Seconds, where poison is found late; None where that is not known.
        memory: Bytes of the process, without the images, which are mapped from the disk.
    """

    least: float
    most: float | None
    memory: int

    def lines(self) -> list[str]:
        """Return what to tell of it."""
        return [self.training(), f"memory: about {self.memory / GIB:.1f} GiB, and the images as far as there is room"]

    def training(self) -> str:
        """Return how long it trains, in words."""
        if self.most is None:
            return f"training: about {in_words(self.least)} for each training that the defence makes"
        if self.most == self.least:
            return f"training: about {in_words(self.least)}"
        return f"training: about {in_words(self.least)} on clean images, up to {in_words(self.most)} with poison"


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
        The least and the most; other methods than the default and ordinary training make trainings of their own number.
    """
    whole = images * plan.epochs
    if isinstance(defence, Witnesses):
        look, seen_by = observe.detector_plan(images), observe.detector_for(sample)
        looking = _LOOK * _seconds_an_image(sample, seen_by, look, runtime) * images * look.epochs
        own = 0.0 if scan_only else _seconds_an_image(sample, build_model, plan, runtime) * whole
        return Duration(looking + own, looking + flow.ROUNDS * own, _memory(images, plan.epochs + look.epochs))
    once = _seconds_an_image(sample, build_model, plan, runtime) * whole
    return Duration(once, once if isinstance(defence, NoDefence) else None, _memory(images, plan.epochs))


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


def _seconds_an_image(sample: ImageSet, build_model: BuildModel, plan: TrainPlan, runtime: Runtime) -> float:
    """Return the seconds that one image takes in one epoch, from a training of a few updates on the sample."""
    rows = torch.arange(BATCHES * plan.batch_size) % len(sample)
    data = sample.select(rows)
    trainer = Trainer(runtime, Seeds(0))
    model = build_model(torch.Generator().manual_seed(0))
    phase = Phase("estimate", plan.but(epochs=2), stop_on_nonfinite=True)
    history = trainer.fit(model, data, phase)
    return float(history.seconds[-1]) / len(data)


def _memory(images: int, epochs: int) -> int:
    """Return the most that this process took so far, and the losses of all images in all epochs."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + 4 * images * epochs
