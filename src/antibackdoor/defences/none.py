"""No defence: the undefended control."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from antibackdoor.defences.base import Defence
from antibackdoor.isolation import Evidence, isolate
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan
from antibackdoor.types import ImageSet, Outcome

__all__ = ["NoDefence"]


@dataclass(frozen=True)
class NoDefence(Defence):
    """Ordinary training on everything; images are scored from its losses, none is flagged."""

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train and score, as :meth:`run` does."""
        return self.run(data, build_model=build_model, fit=fit, plan=plan, seeds=seeds)

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan."""
        model = build_model(seeds.generator("init"))
        history = fit(model, data, Phase("train", plan))
        ranked = isolate(Evidence.of(history, data.labels, data.num_classes))
        isolation = dataclasses.replace(
            ranked,
            flagged=torch.zeros_like(ranked.flagged),
            evidence=("Undefended training flags nothing; the scores, from its losses, are for reference.",),
        )
        return Outcome(model, isolation, (history,))
