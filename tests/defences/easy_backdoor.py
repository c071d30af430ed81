"""What the tests of single defences share: a backdoor that a tiny network learns, a run on it, and what came of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from antibackdoor.attacks import BadNets, poison
from antibackdoor.defences import Defence
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, Trainer, TrainPlan, logits_of
from antibackdoor.types import ImageSet, Outcome, PoisonedSet

ATTACK = BadNets(target=1, pattern="white")


def clean(blobs: Callable[..., ImageSet], count: int, seed: int) -> ImageSet:
    """Grey images of 16x16 pixels in 4 classes, which a tiny network tells apart after a few epochs."""
    return blobs(count, 4, channels=1, height=16, width=16, noise=60.0, seed=seed)


def planted(blobs: Callable[..., ImageSet], count: int, rate: float, seed: int) -> PoisonedSet:
    """The same images, a share ``rate`` of them poisoned by ``ATTACK``."""
    return poison(clean(blobs, count, seed), ATTACK, rate=rate, generator=torch.Generator().manual_seed(0))


def defend(
    defence: Defence,
    data: ImageSet,
    *,
    runtime: Runtime,
    tiny: Callable[..., BuildModel],
    plan: TrainPlan,
    verb: str = "run",
    epochs: int = 12,
    trainer: Trainer | None = None,
) -> Outcome:
    """Call the defence's ``verb`` with seed 0, by the plan with ``epochs`` epochs of one cycle."""
    return getattr(defence, verb)(
        data,
        build_model=tiny(data),
        fit=trainer or Trainer(runtime, Seeds(0)),
        plan=plan.but(epochs=epochs, batch_size=32, schedule="onecycle"),
        seeds=Seeds(0),
    )


def attack_success(outcome: Outcome, test: PoisonedSet, runtime: Runtime) -> float:
    """Share of the triggered test images that the network puts into the attack's target class."""
    return _share(outcome, test, test.poison, torch.tensor(ATTACK.target), runtime)


def clean_accuracy(outcome: Outcome, test: PoisonedSet, runtime: Runtime) -> float:
    """Share of the other test images that it puts into their class."""
    return _share(outcome, test, ~test.poison, test.observed.labels[~test.poison], runtime)


def _share(outcome: Outcome, test: PoisonedSet, rows: Tensor, labels: Tensor, runtime: Runtime) -> float:
    logits = logits_of(outcome.model, test.observed, runtime, index=rows.nonzero().squeeze(1))
    return float((logits.argmax(1) == labels).float().mean())
