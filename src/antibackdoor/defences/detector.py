"""Which network the defence ``filter`` looks with, where that is not the one that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from antibackdoor.errors import UnknownNameError
from antibackdoor.models import MODELS, BuildModel, Resized, builder_from, size_within
from antibackdoor.training import TrainPlan
from antibackdoor.types import ImageSet

__all__ = ["AUTO", "OWN", "Detector", "check_detector", "detector_for"]

AUTO, OWN = "auto", "own"
# Networks that the alarm was measured with (docs/log.md); the last one looks in place of all others. Longer side, in
# pixels, of the largest images that it was measured with: of larger ones a detector sees a smaller picture.
_MEASURED, _SIDE = ("wrn-10-1", "wrn-16-1"), 64


@dataclass(frozen=True, eq=False)
class Detector:
    """A network that looks in place of the one that is asked for.

    Attributes:
        name: Of its architecture, and what it sees of larger images.
        build_model: Builds it; it takes images of the set's own size.
        plan: How it is trained: for as many epochs and with the same augmentation as the other would be, and with the
            defaults of ``TrainPlan``, as in the measurements behind the alarm. What suits the other need not suit it:
            where that begins with weights learned elsewhere, the detector has the default epochs at least.
    """

    name: str
    build_model: BuildModel
    plan: TrainPlan


def check_detector(name: str) -> None:
    """Raise UnknownNameError unless a detector has that name."""
    if name not in (AUTO, OWN, *MODELS) and not name.startswith("timm:"):
        raise UnknownNameError("detector", name, [AUTO, OWN, *MODELS, "timm:NAME"])


def detector_for(name: str, build_model: BuildModel, data: ImageSet, plan: TrainPlan) -> Detector | None:
    """Return the network to look with; None where it is the one that is asked for, or one like it.

    Args:
        name: Of a network, which sees the images as they are; "own" for the one that is asked for; "auto" for that too
            where it is one that the alarm was measured with, begins anew, and the images are no larger than the
            measured ones. Else "auto" is WRN-16-1, and of larger images it sees a smaller picture.
        build_model: Builds the network that is asked for.
        data: The set.
        plan: Of that network's training.

    Raises:
        UnknownNameError: timm has no network of that name.
        ConfigError: It needs timm, which is not installed.
    """
    if name == OWN:
        return None
    _, height, width = data.shape
    size = size_within(height, width, _SIDE) if name == AUTO else None
    builders = {known: builder_from(known, data)[0] for known in (_MEASURED if name == AUTO else (name,))}
    if size is None and not plan.tunes and _shapes(build_model) in map(_shapes, builders.values()):
        return None
    name, build = list(builders.items())[-1]
    usual = TrainPlan()
    measured = usual.but(epochs=max(plan.epochs, usual.epochs) if plan.tunes else plan.epochs, augment=plan.augment)
    if size is None:
        return Detector(name, build, measured)
    words = f"{name}, which sees images of {size[0]} x {size[1]} pixels,"
    return Detector(words, lambda generator: Resized(build(generator), *size), measured)


def _shapes(build_model: BuildModel) -> list[tuple[int, ...]]:
    """Return what tells one architecture from another: the shapes of its parameters, in order."""
    network: nn.Module = build_model(torch.Generator())
    return [tuple(value.shape) for value in network.parameters()]
