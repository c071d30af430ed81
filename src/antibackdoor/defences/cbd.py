"""Causality-inspired backdoor defence: a second network learns what a first, biased one has not.

A backdoor is learned before the classes are. So a network trained for a few epochs has low losses on poison above all,
and the network for use is then trained with every image weighted by how little the biased one knows of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from antibackdoor.defences.base import Defence
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import flag_share
from antibackdoor.models import BuildModel
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Objective, Phase, Runtime, Step, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet, Isolation, Outcome

__all__ = ["Cbd", "weight"]

_TINY = 1e-8


def weight(biased: Tensor, clean: Tensor) -> Tensor:
    """Return ``l_B / (l_C + l_B)``, before it is scaled to mean 1 in a batch.

    Args:
        biased: float (..., N), >= 0: losses l_B under the biased network, in nats.
        clean: float (..., N), >= 0: losses l_C under the network in training.

    Returns:
        float (..., N) in [0, 1]; zero where both losses are.
    """
    return biased / (clean + biased + _TINY)


@dataclass(frozen=True)
class Cbd(Defence):
    """Train a biased network for a few epochs, then another with weights that are low where the biased one is sure.

    Images are scored by minus their weight before scaling, averaged over the epochs. It is computed after training from
    the losses that were recorded, with one forward pass of the biased network over images without augmentation, so
    held-out images are scored as well. There is no cut: nothing is flagged unless ``share`` is given. A scan trains for
    fewer epochs, so what it ranks and flags comes near what a run does, but is not the same.

    Differences from the paper: training goes by the plan, without Nesterov's correction; the optional penalty on the
    dependence of the two networks is left out; and the biased network stops early, after the first epoch in which it is
    certain of much of any one class, since once all its losses are near zero the weights are noise. To be able to
    stop, each of its epochs is a phase of its own, with fresh momentum. In a set without poison the weights hold back
    images that are easy. With several processes the mean of the weights is of each process's own share of a batch.

    Attributes:
        biased_epochs: Most epochs of the biased network.
        biased_lr: Its constant learning rate.
        certain_loss: Loss, in nats, below which the biased network counts as certain of an image.
        certain_share: Share of any class, 0..1, at which certainty ends the biased training.
        scan_epochs: Epochs of the weighted training in a scan, at most the plan's.
        share: Share to flag, 0..1; None flags nothing.

    Source:
        Zhang et al., Backdoor Defense via Deconfounded Representation Learning, CVPR 2023; github.com/zaixizhang/CBD.
    """

    biased_epochs: int = 5
    biased_lr: float = 0.1
    certain_loss: float = 0.1
    certain_share: float = 0.5
    scan_epochs: int = 5
    share: float | None = None

    def __post_init__(self) -> None:
        for name in ("biased_epochs", "scan_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("biased_lr", "certain_loss"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: must be a finite number above 0, got {value}")
        if not 0 < self.certain_share <= 1:
            raise ConfigError(f"certain_share: must be above 0 and at most 1, got {self.certain_share}")
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"share: must be above 0 and below 1, or null to flag nothing, got {self.share}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train the biased network, then the weighted one for a few epochs."""
        short = plan.but(epochs=min(self.scan_epochs, plan.epochs))
        return self.run(data, build_model=build_model, fit=fit, plan=short, seeds=seeds)

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train the biased network, then by the plan the weighted one."""
        biased = build_model(seeds.child("biased").generator("init"))
        histories = self._train_biased(biased, data, fit, plan)
        model = build_model(seeds.generator("init"))
        history = fit(model, data, Phase("train", plan), objective=_weighted(biased, fit.runtime))
        known = ce(logits_of(biased, data, fit.runtime), data.labels)
        isolation = self._isolate(known, torch.from_numpy(history.losses), data, len(histories))
        return Outcome(model, isolation, (*histories, history))

    def _train_biased(self, biased: nn.Module, data: ImageSet, fit: Fit, plan: TrainPlan) -> list[History]:
        epoch = plan.by_sgd(epochs=1, lr=self.biased_lr, schedule="constant")
        histories: list[History] = []
        while len(histories) < self.biased_epochs:
            histories.append(fit(biased, data, Phase(f"biased {len(histories) + 1}", epoch)))
            if self._is_certain(histories[-1], data.labels):
                break
        biased.eval()
        return histories

    def _is_certain(self, history: History, labels: Tensor) -> bool:
        """Return whether the biased network is certain of enough of any class, by the losses seen in training."""
        certain = torch.from_numpy(history.losses[-1]) < self.certain_loss
        if history.held_out is not None:
            trained = ~torch.from_numpy(history.held_out)
            certain, labels = certain[trained], labels[trained]
        return any(float(certain[labels == label].float().mean()) >= self.certain_share for label in labels.unique())

    def _isolate(self, known: Tensor, losses: Tensor, data: ImageSet, epochs: int) -> Isolation:
        """Return the scores and flags.

        Args:
            known: float32 (N,), losses under the biased network.
            losses: float32 (E, N), losses in the weighted training.
            data: The set.
            epochs: Of the biased network.
        """
        scores = -weight(known, losses).mean(0)
        medians = {int(label): float(known[data.labels == label].median()) for label in data.labels.unique()}
        lowest = min(medians, key=lambda label: medians[label])
        certain = float((known < self.certain_loss).float().mean())
        evidence = [
            f"The biased network was trained for {epochs} of at most {self.biased_epochs} epochs; its median loss is "
            f"{float(known.median()):.2g} nats, and {medians[lowest]:.2g} in label {lowest}, the lowest; it is certain "
            f"of {100 * certain:.1f} % of the images"
            + ("." if certain < 0.5 else ", and of so many it may not tell poison from what is merely easy.")
        ]
        if self.share is None:
            flagged = torch.zeros(len(scores), dtype=torch.bool)
            evidence.append("Weighting has no cut of its own, so nothing is flagged; the scores are for ranking.")
        else:
            flagged = flag_share(scores, self.share)
            evidence.append(
                f"A fixed {100 * self.share:g} % ({int(flagged.sum())} of {len(flagged)} images) is flagged, those of "
                "the lowest weights. A fixed share says which images to look at first, not whether there is poison."
            )
        return Isolation(scores, flagged, "undecided", tuple(evidence))


def _weighted(biased: nn.Module, runtime: Runtime) -> Objective:
    """Return the objective of the weighted training; ``biased`` is in evaluation mode."""

    def objective(step: Step) -> Tensor:
        with torch.no_grad(), runtime.autocast():
            logits = biased(step.images)
        weights = weight(ce(logits, step.labels), step.losses.detach())
        # The mean of weights scaled to mean 1 times losses; no weight at all leaves nothing to learn.
        return (weights * step.losses).sum() / weights.sum().clamp_min(_TINY)

    return objective
