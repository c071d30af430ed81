"""What the published forms of anti-backdoor learning share: lengths of stages, isolation by a forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor, nn

from antibackdoor.errors import ConfigError
from antibackdoor.isolation import flag_share
from antibackdoor.ops.objectives import ce
from antibackdoor.training import Runtime, TrainPlan, logits_of
from antibackdoor.training.step import split_batches
from antibackdoor.types import History, ImageSet, Isolation

__all__ = [
    "Stage",
    "Updates",
    "ascent_weights",
    "below_gamma",
    "check_epochs",
    "check_rates",
    "constant_parts",
    "isolate_by_pass",
    "lengths",
    "updates_made",
]

Updates: TypeAlias = Literal["epochs", "plan", "published"]
# CIFAR-10, on which the recipes were published.
_PUBLISHED_IMAGES = 50_000


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        epochs: Its length in the recipe; 0 leaves it out.
        share: Share of the images that it trains on, above 0 and at most 1.
        ascends: It trains on isolated images, whose number is rounded up; that of the others is rounded down.
    """

    epochs: int
    share: float = 1.0
    ascends: bool = False

    def updates(self, images: int, batch_size: int) -> int:
        """Return the updates of one epoch of it in a set of ``images`` images."""
        count = math.ceil(self.share * images - 1e-9) if self.ascends else math.floor(self.share * images + 1e-9)
        return max(1, len(split_batches(count, batch_size)))


def lengths(stages: Sequence[Stage], updates: Updates, *, images: int, batch_size: int, plan: TrainPlan) -> list[int]:
    """Return the epochs of every stage on this set.

    Args:
        stages: Of the recipe.
        updates: "epochs" keeps the recipe's epochs; "published" makes, in every stage, as many updates as the recipe
            makes on 50,000 images, rounded up to whole epochs; "plan" shortens or lengthens all stages alike, so that
            together they make about as many updates as ordinary training by the plan.
        images: Images of the set.
        batch_size: Images in an update.
        plan: How an undefended network would be trained.

    Returns:
        At least 1 for each stage that the recipe has, 0 for the others.
    """
    if updates == "epochs":
        return [stage.epochs for stage in stages]
    here = [stage.updates(images, batch_size) for stage in stages]
    if updates == "published":
        there = [stage.epochs * stage.updates(_PUBLISHED_IMAGES, batch_size) for stage in stages]
        return [math.ceil(total / one) for total, one in zip(there, here, strict=True)]
    wanted = plan.epochs * len(split_batches(images, plan.batch_size))
    factor = wanted / max(1, sum(stage.epochs * one for stage, one in zip(stages, here, strict=True)))
    return [max(1, round(stage.epochs * factor)) if stage.epochs else 0 for stage in stages]


def constant_parts(epochs: int, milestones: Iterable[float]) -> list[tuple[int, int, int]]:
    """Cut a training into parts of constant learning rate.

    Args:
        epochs: Of the whole.
        milestones: Epochs, from the start of the training, from which on the rate is a tenth; those outside are
            counted, but cut nothing.

    Returns:
        First epoch, end and number of divisions by ten of every part, in order.
    """
    at = sorted(round(milestone) for milestone in milestones)
    edges = sorted({0, epochs, *(place for place in at if 0 < place < epochs)})
    return [(first, end, sum(place <= first for place in at)) for first, end in zip(edges, edges[1:], strict=False)]


def isolate_by_pass(model: nn.Module, data: ImageSet, runtime: Runtime, share: float) -> Isolation:
    """Isolate the images of lowest loss, by one forward pass in evaluation mode without augmentation.

    Args:
        model: As stage one left it.
        data: The images and observed labels.
        runtime: Device and precision; with several processes the first one decides.
        share: Share to isolate, 0..1, rounded up to whole images.

    Returns:
        Scores are minus the loss, in nats. The verdict is "undecided": a fixed share is found in any set.
    """
    scores = -ce(logits_of(model, data, runtime), data.labels)
    flagged = data.unvouched(flag_share(scores, share))
    sentence = (
        f"A fixed {100 * share:g} % ({int(flagged.sum())} of {len(flagged)} images) is isolated, those of the lowest "
        "loss after stage one. A fixed share says which images to look at first, not whether there is poison."
    )
    return runtime.first(Isolation(scores, flagged, "undecided", (sentence,)))


def below_gamma(history: History, gamma: float) -> str:
    """Say from which epoch on stage one came below the level at which its rule acts.

    Args:
        history: Of stage one.
        gamma: The level, in nats.

    Returns:
        One sentence: the first epoch whose mean loss is below gamma, and the share of images below it at the end.
    """
    losses = history.losses[:, history.trained]
    means = losses.mean(1, dtype=np.float64)
    under = (means < gamma).nonzero()[0]
    when = f"first in epoch {under[0] + 1} (of {len(means)})" if len(under) else f"in no epoch (of {len(means)})"
    share = 100 * float((losses[-1] < gamma).mean())
    return (
        f"The mean loss of stage one was below gamma = {gamma:g} {when}; in the last it was {means[-1]:.2f}, with "
        f"{share:.1f} % of the images below gamma. Above it, the rule of stage one is ordinary training."
    )


def updates_made(histories: Sequence[History], batch_size: int, plan: TrainPlan) -> str:
    """Say how many updates a training made, beside an ordinary one of as many images as its first phase has.

    Args:
        histories: Its phases, in order.
        batch_size: Images in an update of theirs.
        plan: Of ordinary training.

    Returns:
        One sentence.
    """
    first = histories[0]
    ordinary = plan.epochs * len(split_batches(int(first.trained.sum()), plan.batch_size))
    each = ", ".join(f"{history.updates:,} ({history.phase})" for history in histories)
    return (
        f"This training made {sum(history.updates for history in histories):,} updates of {batch_size} images: {each}; "
        f"ordinary training by the plan makes {ordinary:,} of {plan.batch_size}."
    )


def check_rates(defence: object, *names: str) -> None:
    """Raise ConfigError unless these hyper-parameters are finite numbers above 0."""
    for name in names:
        value = getattr(defence, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}: must be a finite number above 0, got {value}")


def check_epochs(defence: object, **least: int) -> None:
    """Raise ConfigError unless these hyper-parameters are at least so large."""
    for name, bound in least.items():
        if getattr(defence, name) < bound:
            raise ConfigError(f"{name}: must be at least {bound}, got {getattr(defence, name)}")


def ascent_weights(isolated: Tensor) -> tuple[float, float]:
    """Return what an image of the rest and an isolated one weigh in ``E_rest[loss] - E_isolated[loss]``.

    Args:
        isolated: bool (M,), of the images that are trained on.

    Returns:
        M over the number of each kind, so that the mean over batches of any size has that expectation; 0 where there
        are none.
    """
    total, count = len(isolated), int(isolated.sum())
    return (total / (total - count) if count < total else 0.0), (total / count if count else 0.0)
