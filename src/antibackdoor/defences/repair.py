"""What the repairs share: training on trusted images, and the isolation of a method that isolates nothing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.isolation import Evidence, isolate
from antibackdoor.training import Fit, Objective, Phase, Runtime, TrainPlan, logits_of, mean_loss
from antibackdoor.training.step import split_batches
from antibackdoor.types import History, ImageSet, Isolation

__all__ = ["accuracy_on", "fit_trusted", "nothing_flagged", "tuning", "updates_to_epochs"]


def updates_to_epochs(updates: int, images: int, batch_size: int, world: int = 1) -> int:
    """Return how many whole epochs hold at least so many updates.

    Args:
        updates: At least 1.
        images: In the set.
        batch_size: Images in one update.
        world: Processes that share each batch.
    """
    return math.ceil(updates / len(split_batches(images, batch_size, world)))


def fit_trusted(
    model: nn.Module,
    trusted: ImageSet,
    fit: Fit,
    phase: Phase,
    *,
    observed: int,
    objective: Objective = mean_loss,
) -> History:
    """Train on trusted images.

    Args:
        model: Trained in place.
        trusted: The images.
        fit: The training loop.
        phase: How to train.
        observed: N, images of the observed data.
        objective: As of ``fit``.

    Returns:
        The history as the observed data sees it: losses float32 (E, N), all NaN, since none of it was trained on.
    """
    history = fit(model, trusted, phase, objective=objective)
    left_out = np.full((len(history.seconds), observed), np.nan, np.float32)
    return dataclasses.replace(history, losses=left_out, held_out=None)


def tuning(plan: TrainPlan, trusted: ImageSet, fit: Fit, *, updates: int, lr: float, batch_size: int) -> TrainPlan:
    """Return the plan of a training on trusted images: of so many updates, its learning rate along a cosine to zero."""
    epochs = updates_to_epochs(updates, len(trusted), batch_size, fit.runtime.world)
    return plan.by_sgd(epochs=epochs, batch_size=batch_size, lr=lr, schedule="cosine")


def nothing_flagged(history: History, data: ImageSet, *evidence: str) -> Isolation:
    """Return the isolation of a method that repairs: scores from an undefended training, for reference; no flag.

    Args:
        history: Of the undefended training.
        data: The observed data.
        *evidence: Sentences that say what the repair did.
    """
    ranked = isolate(Evidence.of(history, data.labels, data.num_classes))
    sentence = (
        "This defence repairs the network and isolates nothing; the scores, from the losses of its undefended "
        "training, are for reference."
    )
    return dataclasses.replace(ranked, flagged=torch.zeros_like(ranked.flagged), evidence=(sentence, *evidence))


def accuracy_on(model: nn.Module, data: ImageSet, runtime: Runtime) -> float:
    """Return the share of images that is predicted as labelled, 0..1, the same in all processes."""
    correct: Tensor = (logits_of(model, data, runtime).argmax(1) == data.labels).sum()
    # What is decided by this must be decided alike everywhere.
    return int(runtime.sum(correct[None].to(runtime.device)).cpu()) // runtime.world / len(data)
