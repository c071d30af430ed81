"""What filters share: train and score by one signal, and train anew without what was flagged."""

from __future__ import annotations

from torch import Tensor, nn

from antibackdoor.isolation import Evidence, Network, Signal
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan
from antibackdoor.types import History, ImageSet, Outcome

__all__ = ["train_and_score", "without_flagged"]


def train_and_score(
    signal: Signal, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds
) -> tuple[nn.Module, History, Tensor]:
    """Train by the plan, as if there were no poison, and score.

    Args:
        signal: What scores.
        data: The observed data.
        build_model: As in :meth:`Defence.run`.
        fit: Likewise.
        plan: Likewise.
        seeds: Likewise.

    Returns:
        The network, its history, and float32 (N,) scores.
    """
    model = build_model(seeds.generator("init"))
    history = fit(model, data, Phase("train", plan))
    evidence = Evidence.of(history, data.labels, data.num_classes, Network(model, data, fit.runtime))
    # All processes must leave out the same images.
    return model, history, fit.runtime.first(signal.scores(evidence).float())


def without_flagged(
    found: Outcome, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds
) -> Outcome:
    """Train a new network by the plan on what was not flagged; where nothing was, the first network is the one.

    Args:
        found: What the scan found.
        data: The observed data.
        build_model: As in :meth:`Defence.run`.
        fit: Likewise.
        plan: Likewise.
        seeds: Likewise.
    """
    flagged = data.unvouched(found.isolation.flagged)
    if not bool(flagged.any()):
        return found
    model = build_model(seeds.child("retrain").generator("init"))
    history = fit(model, data, Phase("retrain", plan), subset=~flagged)
    return Outcome(model, found.isolation, (*found.histories, history))
