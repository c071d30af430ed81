"""A method of ours after Anti-Backdoor Learning (Li et al., NeurIPS 2021); see ``abl_published`` for theirs.

It isolates a fixed share in a first stage that keeps losses from falling below gamma, and then makes the network
forget what was isolated. Forgetting is bounded, in one of two ways. "ascent" is the paper's gradient ascent, but each
isolated image counts ``min(loss, cap)``, so it no longer matters once its loss reaches the cap. "complement" minimises
``-log(1 - p)`` of the isolated label instead, which cannot fall below zero and has its full gradient where the network
is certain: there ascent has none, and a backdoor is what a network is most certain of (docs/log.md). A loss that is not
finite ends the phase with the last good weights.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from antibackdoor.defences.abl_stages import check_epochs, check_rates
from antibackdoor.defences.base import Defence
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import SIGNALS, Evidence, Network, Scope, isolate, rank_within_classes
from antibackdoor.models import BuildModel
from antibackdoor.ops.objectives import capped, complement, flood, lga
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Objective, Phase, Step, TrainPlan
from antibackdoor.types import History, ImageSet, Isolation, Outcome

__all__ = ["AblModified"]


@dataclass(frozen=True)
class AblModified(Defence):
    """A method of this package in the order of ABL's code: isolate, fine-tune on the rest, forget what was isolated.

    It is not Anti-Backdoor Learning as published, which is ``abl-code`` and ``abl-paper``. Images are ranked by their
    loss trajectories, not by the last loss (docs/log.md has both, measured); forgetting is bounded and runs with frozen
    batch-normalisation statistics; beside each isolated image goes a few of the rest, whose loss is minimised in the
    same step, so that the network forgets the trigger and not the class. Lengths and rates but those below are the
    plan's.

    Attributes:
        gamma: The level, in nats, at which stage one holds the loss.
        reduction: "sample" applies the rule to every image (the paper's equation), "batch" to the mean of a batch
            (every published code). With several processes that mean, and so the sign, is of each process's own share.
        share: Share to isolate, 0..1.
        signal: What ranks the images: "loss" of the last epoch (the paper's rule), "loss-drop" or
            "trajectory"; see ``isolation.signals``.
        scope: Rank over the whole "set" (the paper's rule) or within each "class".
        isolation_lr: Constant learning rate of stage one.
        forget: "ascent" or "complement"; see above.
        cap: Loss, in nats, at which ascent on an image stops; four times log K, the loss of a blind guess, if None.
        isolation_epochs: Epochs of stage one.
        unlearn_epochs: Passes over the isolated images; 0 leaves the forgetting out.
        unlearn_lr: Learning rate of the forgetting at its start; it falls to zero along a cosine.
        unlearn_batch_size: Images in one update of the forgetting, anchors included.
        anchors: Images of the rest for each isolated one in the forgetting, from the less suspect half of every class;
            0 leaves the isolated ones alone.

    Source:
        Ours, after Li et al., NeurIPS 2021.
    """

    gamma: float = 0.5
    reduction: Literal["batch", "sample"] = "batch"
    share: float = 0.01
    signal: str = "trajectory"
    scope: Scope = "set"
    isolation_lr: float = 0.1
    forget: Literal["ascent", "complement"] = "complement"
    cap: float | None = None
    isolation_epochs: int = 10
    unlearn_epochs: int = 20
    unlearn_lr: float = 1e-3
    unlearn_batch_size: int = 64
    anchors: int = 9

    def __post_init__(self) -> None:
        SIGNALS.get(self.signal)
        check_rates(self, "gamma", "isolation_lr", "unlearn_lr")
        check_epochs(self, isolation_epochs=1, unlearn_epochs=0, unlearn_batch_size=2, anchors=0)
        if not 0 < self.share < 1:
            raise ConfigError(f"share: must be above 0 and below 1, got {self.share}")
        if self.cap is not None and not (math.isfinite(self.cap) and self.cap > 0):
            raise ConfigError(f"cap: must be a finite number above 0, or null for 4 log K, got {self.cap}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Run stage one: train under the rule, without augmentation, and isolate."""
        model = build_model(seeds.generator("init"))
        isolation, history = self._isolate(model, data, fit, plan)
        return Outcome(model, isolation, (history,))

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Isolate; fine-tune on the rest by the plan of ordinary training; unlearn."""
        model = build_model(seeds.generator("init"))
        isolation, stage_one = self._isolate(model, data, fit, plan)
        isolated = isolation.flagged
        histories = [stage_one, fit(model, data, Phase("fine-tune", plan), subset=~isolated)]
        if self.unlearn_epochs:
            histories.append(self._unlearn(model, data, isolation, fit, plan, seeds))
        return Outcome(model, isolation, tuple(histories))

    def _isolate(self, model: nn.Module, data: ImageSet, fit: Fit, plan: TrainPlan) -> tuple[Isolation, History]:
        stage_one = plan.by_sgd(epochs=self.isolation_epochs, lr=self.isolation_lr, schedule="constant", augment=())
        history = fit(model, data, Phase("isolate", stage_one), objective=self._held_at_gamma)
        network = Network(model, data, fit.runtime)
        evidence = Evidence.of(history, data.labels, data.num_classes, network)
        isolation = isolate(evidence, signal=self.signal, share=self.share, scope=self.scope)
        isolation = dataclasses.replace(isolation, flagged=data.unvouched(isolation.flagged))
        return fit.runtime.first(isolation), history  # All processes must leave out the same images.

    def _held_at_gamma(self, step: Step) -> Tensor:
        if self.reduction == "sample":
            return lga(step.losses, self.gamma).mean()
        return flood(step.losses.mean(), self.gamma)

    def _forgetting(self, isolated: Tensor, data: ImageSet) -> Objective:
        """Return the objective of one batch: learn the rest, forget the isolated."""
        cap = 4 * math.log(data.num_classes) if self.cap is None else self.cap
        masks: dict[torch.device, Tensor] = {}

        def objective(step: Step) -> Tensor:
            device = step.losses.device
            if device not in masks:
                masks[device] = isolated.to(device)
            chosen = masks[device][step.index].float()
            rest = 1 - chosen
            if self.forget == "ascent":
                forgetting = -capped(step.losses, cap)
            else:
                forgetting = complement(step.logits, step.labels)
            learnt = (step.losses * rest).sum() / rest.sum().clamp_min(1)
            return learnt + (forgetting * chosen).sum() / chosen.sum().clamp_min(1)

        return objective

    def _unlearn(
        self, model: nn.Module, data: ImageSet, isolation: Isolation, fit: Fit, plan: TrainPlan, seeds: Seeds
    ) -> History:
        isolated = isolation.flagged
        # Most of the poison is not isolated; as an anchor it would teach again what the ascent unlearns.
        unsuspected = rank_within_classes(isolation.scores, data.labels) <= 0.5
        rest = (unsuspected & ~isolated).nonzero().squeeze(1)
        count = min(len(rest), self.anchors * int(isolated.sum()))
        subset = isolated.clone()
        subset[rest[torch.randperm(len(rest), generator=seeds.generator("anchors"))[:count]]] = True
        ascent = plan.by_sgd(
            epochs=self.unlearn_epochs,
            batch_size=self.unlearn_batch_size,
            lr=self.unlearn_lr,
            schedule="cosine",
            augment=(),
            weight_decay=0.0,
        )
        phase = Phase("unlearn", ascent, freeze_norm=True, clip_norm=1.0, stop_on_nonfinite=True)
        return fit(model, data, phase, objective=self._forgetting(isolated, data), subset=subset)
