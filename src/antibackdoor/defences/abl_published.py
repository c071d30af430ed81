"""Anti-Backdoor Learning (Li et al., NeurIPS 2021) as published: the released code, BackdoorBench's recipe, the paper.

These are for comparison: lengths, learning rates, momentum, weight decay, batch size and augmentation are the recipe's
own, and the plan of ordinary training counts for nothing but ``updates="plan"``.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from antibackdoor.defences.abl_stages import (
    Stage,
    Updates,
    ascent_weights,
    below_gamma,
    check_epochs,
    check_rates,
    constant_parts,
    isolate_by_pass,
    lengths,
    updates_made,
)
from antibackdoor.defences.base import Defence
from antibackdoor.errors import ConfigError
from antibackdoor.models import BuildModel
from antibackdoor.ops.augment import AugmentName
from antibackdoor.ops.objectives import flood, lga
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Objective, Phase, Step, TrainPlan
from antibackdoor.types import History, ImageSet, Isolation, Outcome

__all__ = ["AblBackdoorBench", "AblCode", "AblPaper"]

_SECOND = "fine-tune and unlearn"


@dataclass(frozen=True)
class _Published(Defence):
    """Stage one and its isolation, which all published forms have.

    Attributes:
        gamma: Level, in nats, at which stage one holds the loss.
        share: Share to isolate, 0..1: the images of lowest loss after stage one, by a forward pass in evaluation mode.
        lr: Constant learning rate of stage one.
        batch_size: Images in an update of every stage, at least 2.
        momentum: Of SGD, in every stage.
        nesterov: With Nesterov's correction.
        weight_decay: L2 penalty on every parameter, in every stage.
        updates: How long the stages are: "epochs", the recipe's; "published", in every stage as many updates as the
            recipe makes on 50,000 images, rounded up to whole epochs; "plan", all stages shortened or lengthened alike,
            to as many updates in all as ordinary training makes. Milestones move with them.
    """

    gamma: float = 0.5
    share: float = 0.01
    lr: float = 0.1
    batch_size: int = 128
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    updates: Updates = "epochs"

    def __post_init__(self) -> None:
        check_rates(self, "gamma", "lr")
        if not 0 < self.share < 1:
            raise ConfigError(f"share: must be above 0 and below 1, got {self.share}")
        self._plan(1, self.lr)  # It refuses what no training can have.

    @property
    @abstractmethod
    def _stages(self) -> tuple[Stage, ...]:
        """The stages of the recipe, stage one first."""

    def _plan(self, epochs: int, lr: float, augment: tuple[AugmentName, ...] = ()) -> TrainPlan:
        return TrainPlan(
            epochs=epochs,
            batch_size=self.batch_size,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="constant",
            augment=augment,
            nesterov=self.nesterov,
        )

    def _lengths(self, data: ImageSet, plan: TrainPlan) -> list[int]:
        return lengths(self._stages, self.updates, images=len(data), batch_size=self.batch_size, plan=plan)

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Run stage one, and isolate."""
        model = build_model(seeds.generator("init"))
        isolation, history = self._isolate(model, data, fit, self._lengths(data, plan)[0])
        return Outcome(model, isolation, (history,))

    def _isolate(self, model: nn.Module, data: ImageSet, fit: Fit, epochs: int) -> tuple[Isolation, History]:
        phase = Phase("isolate", self._plan(epochs, self.lr), reshuffle=self._reshuffle())
        history = fit(model, data, phase, objective=self._held_at_gamma)
        isolation = isolate_by_pass(model, data, fit.runtime, self.share)
        sentences = (*isolation.evidence, below_gamma(history, self.gamma))
        return dataclasses.replace(isolation, evidence=sentences), history

    def _reshuffle(self) -> bool:
        return True

    @abstractmethod
    def _held_at_gamma(self, step: Step) -> Tensor:
        """The objective of stage one."""

    def _outcome(self, model: nn.Module, isolation: Isolation, histories: list[History], plan: TrainPlan) -> Outcome:
        """Return the outcome, its evidence with how long this training was beside an ordinary one."""
        sentences = (*isolation.evidence, updates_made(histories, self.batch_size, plan))
        return Outcome(model, dataclasses.replace(isolation, evidence=sentences), tuple(histories))


def _ascend(step: Step) -> Tensor:
    return -step.losses.mean()


@dataclass(frozen=True)
class AblCode(_Published):
    """ABL as its authors released it, step by step, with the defaults of their configuration.

    Stage one trains without augmentation and holds the mean loss of each batch at gamma; the images of lowest loss are
    isolated; the same network is fine-tuned on the others, with augmentation; and then it ascends on the isolated
    images alone, with batch normalisation in training mode. Fine-tuning and ascent share one optimiser, so the ascent
    starts with the momentum of the fine-tuning. Its loss is not bounded.

    Differences: a last batch of under an eighth of the others joins the one before; the number of isolated images is
    rounded up, and equal losses are taken in random order; images are normalised inside the network; every random
    choice comes from the run's seed; a loss that is not finite ends the ascent with the last good weights.

    Attributes:
        rule: Of stage one: "flood", ``|mean - gamma| + gamma``, or "lga", ``sign(mean - gamma) mean``; at one gamma
            their gradients are the same.
        isolation_epochs: Epochs of stage one.
        reshuffle: Draw a new order of the images in every epoch of stage one. The released loader does not.
        tune_epochs: Epochs of the fine-tuning; 0 leaves it out.
        tune_lr: Its learning rate at the start.
        tune_milestones: Its epochs from which on the rate is a tenth of what it was.
        tune_augment: Names of ``ops.augment`` for the fine-tuning.
        unlearn_epochs: Passes of the ascent; 0 leaves it out. The released setting of 5 makes 4.
        unlearn_lr: Constant learning rate of the ascent.
        unlearn_augment: Names of ``ops.augment`` for the ascent.
        freeze_norm: Leave batch normalisation as it is in the ascent, which the released code does not.

    Source:
        github.com/bboylyg/ABL (an earlier version has batches of 64). Its README: clean accuracy 86.11, attack success
        3.04 on CIFAR-10, WRN-16-1, BadNets.
    """

    rule: Literal["flood", "lga"] = "flood"
    isolation_epochs: int = 10
    reshuffle: bool = False
    tune_epochs: int = 60
    tune_lr: float = 0.1
    tune_milestones: tuple[int, ...] = (40, 60)
    tune_augment: tuple[AugmentName, ...] = ("crop", "flip", "cutout-2px")
    unlearn_epochs: int = 4
    unlearn_lr: float = 5e-4
    unlearn_augment: tuple[AugmentName, ...] = ()
    freeze_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates(self, "tune_lr", "unlearn_lr")
        check_epochs(self, isolation_epochs=1, tune_epochs=0, unlearn_epochs=0)
        if any(milestone < 1 for milestone in self.tune_milestones):
            raise ConfigError(f"tune_milestones: must all be at least 1, got {list(self.tune_milestones)}")

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return (
            Stage(self.isolation_epochs),
            Stage(self.tune_epochs, 1 - self.share),
            Stage(self.unlearn_epochs, self.share, ascends=True),
        )

    def _reshuffle(self) -> bool:
        return self.reshuffle

    def _held_at_gamma(self, step: Step) -> Tensor:
        return (flood if self.rule == "flood" else lga)(step.losses.mean(), self.gamma)

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Isolate; fine-tune on the rest; ascend on what was isolated."""
        epochs = self._lengths(data, plan)
        model = build_model(seeds.generator("init"))
        isolation, stage_one = self._isolate(model, data, fit, epochs[0])
        later = self._second_stage(model, data, isolation.flagged, fit, *epochs[1:])
        return self._outcome(model, isolation, [stage_one, *later], plan)

    def _second_stage(
        self, model: nn.Module, data: ImageSet, isolated: Tensor, fit: Fit, tune: int, unlearn: int
    ) -> list[History]:
        whole = tune + unlearn
        scaled = [milestone * tune / max(1, self.tune_epochs) for milestone in self.tune_milestones]
        histories = []
        for number, (first, end, drops) in enumerate(constant_parts(tune, scaled) if tune else (), 1):
            name = "fine-tune" if number == 1 else f"fine-tune {number}"
            rate = self._plan(whole, self.tune_lr * 0.1**drops, self.tune_augment)
            phase = Phase(name, rate, first=first, last=end, part_of=_SECOND)
            histories.append(fit(model, data, phase, subset=~isolated))
        if unlearn:
            rate = self._plan(whole, self.unlearn_lr, self.unlearn_augment)
            phase = Phase(
                "unlearn",
                rate,
                freeze_norm=self.freeze_norm,
                stop_on_nonfinite=True,
                first=tune,
                part_of=_SECOND,
            )
            histories.append(fit(model, data, phase, objective=_ascend, subset=isolated))
        return histories


@dataclass(frozen=True)
class AblBackdoorBench(AblCode):
    """ABL in the recipe that BackdoorBench runs: :class:`AblCode` with other defaults.

    Lower learning rates and larger batches, twice the epochs of stage one in a new order each, and an ascent five times
    as long at a fifth of the rate, with augmentation. What that repository's file says of the rates of fine-tuning and
    ascent (0.1 and 5e-4) its code does not use.

    Source:
        github.com/SCLBD/BackdoorBench, ``defense/abl.py`` and ``config/defense/abl``.
    """

    lr: float = 0.01
    batch_size: int = 256
    isolation_epochs: int = 20
    reshuffle: bool = True
    tune_lr: float = 0.01
    tune_augment: tuple[AugmentName, ...] = ("crop", "flip")
    unlearn_epochs: int = 20
    unlearn_lr: float = 1e-4
    unlearn_augment: tuple[AugmentName, ...] = ("crop", "flip")


@dataclass(frozen=True)
class AblPaper(_Published):
    """ABL as the paper's text states it: local gradient ascent of each image, then one joint objective.

    Until the turning epoch ``mean of sign(loss - gamma) * loss`` over images is minimised, without augmentation. Then
    the images of lowest loss are isolated, and for all epochs that are left ``E_rest[loss] - E_isolated[loss]`` is
    (L_GGA), on batches of all images, in which each kind weighs so that both expectations come out right.

    The paper does not bound the second term, and the network cannot do both: ``cap`` bounds it. What is left open
    there is taken from elsewhere: milestones from CBD, whose code follows ABL's, augmentation from the released code.

    Attributes:
        epochs: T, of both stages together.
        turning_epoch: T_te, epochs of stage one, at least 1 and below ``epochs``.
        milestones: Epochs, counted from the start and not before the turning epoch, from which on the learning rate is
            a tenth of what it was.
        augment: Names of ``ops.augment`` for the joint objective.
        cap: Loss, in nats, from which on an isolated image no longer counts; None, the paper, has no bound.

    Source:
        Li et al., NeurIPS 2021, section 3.2: T = 100, T_te = 20, gamma = 0.5, 1 % isolated; stochastic gradient
        descent at 0.1, momentum 0.9, weight decay 1e-4.
    """

    nesterov: bool = False
    epochs: int = 100
    turning_epoch: int = 20
    milestones: tuple[int, ...] = (20, 70)
    augment: tuple[AugmentName, ...] = ("crop", "flip", "cutout-2px")
    cap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_epochs(self, turning_epoch=1)
        if self.turning_epoch >= self.epochs:
            raise ConfigError(f"turning_epoch: must be below epochs ({self.epochs}), got {self.turning_epoch}")
        if any(milestone < self.turning_epoch for milestone in self.milestones):
            raise ConfigError(
                f"milestones: must all be at least turning_epoch ({self.turning_epoch}), got {list(self.milestones)}"
            )
        if self.cap is not None:
            check_rates(self, "cap")

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return Stage(self.turning_epoch), Stage(self.epochs - self.turning_epoch)

    def _held_at_gamma(self, step: Step) -> Tensor:
        return lga(step.losses, self.gamma).mean()

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Isolate at the turning epoch, then train on the joint objective."""
        epochs = self._lengths(data, plan)
        model = build_model(seeds.generator("init"))
        isolation, stage_one = self._isolate(model, data, fit, epochs[0])
        objective = self._joint(isolation.flagged, stage_one)
        recipe = self.epochs - self.turning_epoch
        scaled = [(milestone - self.turning_epoch) * epochs[1] / recipe for milestone in self.milestones]
        histories = [stage_one]
        for number, (first, end, drops) in enumerate(constant_parts(epochs[1], scaled), 1):
            rate = self._plan(epochs[1], self.lr * 0.1**drops, self.augment)
            name = "joint" if number == 1 else f"joint {number}"
            phase = Phase(name, rate, stop_on_nonfinite=True, first=first, last=end, part_of="joint objective")
            histories.append(fit(model, data, phase, objective=objective))
            if histories[-1].stopped:
                break
        return self._outcome(model, isolation, histories, plan)

    def _joint(self, isolated: Tensor, stage_one: History) -> Objective:
        trained = slice(None) if stage_one.held_out is None else torch.from_numpy(~stage_one.held_out)
        learn, forget = ascent_weights(isolated[trained])
        masks: dict[torch.device, Tensor] = {}

        def objective(step: Step) -> Tensor:
            device = step.losses.device
            if device not in masks:
                masks[device] = isolated.to(device)
            chosen = masks[device][step.index]
            ascending = step.losses if self.cap is None else step.losses.clamp(max=self.cap)
            return torch.where(chosen, -forget * ascending, learn * step.losses).mean()

        return objective
