"""What the tests of detectors share: a few of the embedded images with a backdoor, and trusted ones beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from antibackdoor.attacks import BadNets, poison
from antibackdoor.data.embedded import PER_CLASS_TRAIN, load_embedded
from antibackdoor.defences import Defence
from antibackdoor.defences.base import TrustedDefence
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, Trainer, TrainPlan
from antibackdoor.types import ImageSet, Outcome, PoisonedSet

PER_CLASS, TRUSTED = 60, 20
PLAN = TrainPlan(epochs=10, batch_size=32, lr=0.05, schedule="onecycle", augment=())


@functools.cache
def pictures() -> tuple[ImageSet, ImageSet]:
    """600 images of ten classes, and 200 others that are trusted."""
    train, _ = load_embedded()
    place = torch.arange(len(train)) % PER_CLASS_TRAIN
    chosen = (place < PER_CLASS), (place >= PER_CLASS_TRAIN - TRUSTED)
    observed, trusted = (train.select(rows.nonzero().squeeze(1)) for rows in chosen)
    return observed, trusted


@functools.cache
def planted(rate: float = 0.05) -> PoisonedSet:
    """The images, a share ``rate`` of them with a patch and the label of the second class."""
    return poison(pictures()[0], BadNets(target=1), rate=rate, generator=torch.Generator().manual_seed(0))


def defend(
    defence: Defence,
    data: ImageSet,
    verb: str,
    *,
    runtime: Runtime,
    tiny: Callable[..., BuildModel],
    plan: TrainPlan = PLAN,
) -> Outcome:
    """Call the defence's ``verb`` with seed 0, trusted images in hand if it needs any."""
    if isinstance(defence, TrustedDefence):
        defence = defence.with_trusted(pictures()[1])
    seeds = Seeds(0)
    return getattr(defence, verb)(data, build_model=tiny(data), fit=Trainer(runtime, seeds), plan=plan, seeds=seeds)
