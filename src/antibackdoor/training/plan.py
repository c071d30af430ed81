"""How a network is trained: plain values, no state."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from antibackdoor.errors import ConfigError
from antibackdoor.ops.augment import AUGMENTATIONS, AugmentName

__all__ = ["OptimizerName", "Phase", "Schedule", "TrainPlan"]

OptimizerName = Literal["adamw", "sgd"]
Schedule = Literal["constant", "cosine", "multistep", "onecycle"]


@dataclass(frozen=True)
class TrainPlan:
    """One training by stochastic gradient descent.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images in one update, over all processes together.
        lr: Peak learning rate, of the last layer where ``backbone_lr`` is not 1.
        momentum: Of SGD.
        weight_decay: SGD: L2 penalty on every parameter. AdamW: decay of every parameter that is neither a bias nor
            of a normalisation.
        schedule: "multistep" divides the rate by ten after half and after three quarters of the updates; "cosine"
            falls to zero; "onecycle" rises over the first quarter and falls linearly to zero; "constant" stays.
        augment: Names of ``ops.augment``, applied in order.
        nesterov: SGD with Nesterov's correction; it needs a momentum above 0.
        optimizer: "sgd", or "adamw" (betas .9 and .999).
        backbone_lr: Factor on the learning rate of all layers but the last linear one, above 0 and at most 1.
        warmup: Share of the updates, 0 and up, below 1, over which the rate rises linearly from zero before the
            schedule begins; "onecycle" has a rise of its own and takes none.
        ema: Decay of a moving average of the weights, 0 and up, below 1, which takes their place when the training is
            over; 0 keeps none. Early on the average is over fewer updates: decay is at most (1 + n) / (10 + n).
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "onecycle"
    augment: tuple[AugmentName, ...] = ("crop", "flip")
    nesterov: bool = False
    optimizer: OptimizerName = "sgd"
    backbone_lr: float = 1.0
    warmup: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"epochs: must be at least 1, got {self.epochs}")
        if self.batch_size < 2:
            raise ConfigError(f"batch_size: must be at least 2, got {self.batch_size}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr: must be a finite number above 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum: must be in 0..1, below 1, got {self.momentum}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay: must be finite and at least 0, got {self.weight_decay}")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov: needs a momentum above 0, got 0")
        if not 0 < self.backbone_lr <= 1:
            raise ConfigError(f"backbone_lr: must be above 0 and at most 1, got {self.backbone_lr}")
        for name in ("warmup", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be in 0..1, below 1, got {getattr(self, name)}")
        if self.warmup and self.schedule == "onecycle":
            raise ConfigError("warmup: onecycle rises by itself; take schedule=cosine, or warmup=0")
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        if unknown:
            raise ConfigError(f"augment: unknown {unknown[0]!r}; known: {', '.join(AUGMENTATIONS)}")

    def rate_at(self, progress: float) -> float:
        """Return the learning rate after ``progress`` (0..1) of the updates."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        progress = (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "multistep":
            return self.lr * (0.1 ** ((progress >= 0.5) + (progress >= 0.75)))
        return self.lr * min(progress / 0.25, (1 - progress) / 0.75)

    def but(self, **changes: object) -> TrainPlan:
        """Return the same plan with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def by_sgd(self, **changes: object) -> TrainPlan:
        """Return the same plan for a stage of a defence that brings its own learning rate, which is one of plain SGD.

        One rate for all layers, no warm-up, no average; where the plan is AdamW's, whose decay is no L2 penalty, with
        the default weight decay.
        """
        plan = self.but(backbone_lr=1.0, warmup=0.0, ema=0.0)
        if plan.optimizer != "sgd":
            plan = plan.but(optimizer="sgd", weight_decay=type(self)().weight_decay)
        return plan.but(**changes)


@dataclass(frozen=True)
class Phase:
    """One named training inside a method; the name is how a checkpoint finds its place again.

    Attributes:
        name: Unique within a run, such as "isolate".
        plan: How it trains.
        freeze_norm: Leave batch-normalisation statistics as they are (the network computes in evaluation mode).
        clip_norm: Largest gradient norm of one update, or None.
        stop_on_nonfinite: End the phase with the last good weights, else raise, when a loss is not finite.
        first: Epochs of the plan that an earlier phase has done; the learning rate goes on from there.
        last: Epochs of the plan that are done when this phase ends; all if None.
        part_of: Name of the training that this phase is a part of, or None. Its parts, run one after the other on one
            network, give the same bits as a single phase of that name: they share its random streams, and a later
            part takes over the momentum.
        reshuffle: Draw a new order of the images for every epoch; else the first epoch's order is that of all.
    """

    name: str
    plan: TrainPlan
    freeze_norm: bool = False
    clip_norm: float | None = None
    stop_on_nonfinite: bool = False
    first: int = 0
    last: int | None = None
    part_of: str | None = None
    reshuffle: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end <= self.plan.epochs:
            raise ConfigError(
                f"phase {self.name!r}: epochs {self.first}..{self.last} are no part of {self.plan.epochs} epochs"
            )

    @property
    def end(self) -> int:
        """Epochs of the plan that are done when this phase ends."""
        return self.plan.epochs if self.last is None else self.last

    @property
    def continued(self) -> bool:
        """Whether another part of the same training is to follow."""
        return self.part_of is not None and self.end < self.plan.epochs
