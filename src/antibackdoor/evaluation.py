"""From a trained network and the truth, where it is known, to the figures of a run."""

from __future__ import annotations

from torch import Tensor, nn

from antibackdoor.ops import metrics
from antibackdoor.training import Runtime, logits_of
from antibackdoor.types import ImageSet, Isolation, Metrics, PoisonedSet

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module | None,
    runtime: Runtime,
    *,
    test: ImageSet | None = None,
    triggered: PoisonedSet | None = None,
    target: int | None = None,
    train: ImageSet | None = None,
    held_out: Tensor | None = None,
    isolation: Isolation | None = None,
    truth: PoisonedSet | None = None,
) -> Metrics:
    """Measure everything that what is given allows; see ``ops.metrics`` for the definitions.

    Args:
        model: The network to judge, or None after a scan.
        runtime: Device and precision.
        test: The clean test set, target class included.
        triggered: Triggered test images of non-target classes, or of all where every class has a target of its own.
        target: The target class, for the accuracy on it alone.
        train: The training data as observed.
        held_out: bool (N,), the part of it that was not trained on.
        isolation: What the defence flagged.
        truth: What was planted.
    """
    values: dict[str, float | int | None] = {}
    if model is not None and test is not None:
        predicted = logits_of(model, test, runtime).argmax(1)
        values |= {"ca": metrics.accuracy(predicted, test.labels), "n_test": len(test)}
        if target is not None:
            rows = test.labels == target
            values["ca_target"] = metrics.accuracy(predicted[rows], test.labels[rows])
            values["n_test_target"] = int(rows.sum())
    if model is not None and triggered is not None:
        predicted = logits_of(model, triggered.observed, runtime).argmax(1)
        values["asr"] = metrics.attack_success_rate(predicted, triggered.observed.labels)
        values["ra"] = metrics.robust_accuracy(predicted, triggered.original_labels)
        values["n_triggered"] = len(triggered.observed)
    if model is not None and train is not None and held_out is not None and bool(held_out.any()):
        rows = held_out.nonzero().squeeze(1)
        predicted = logits_of(model, train, runtime, index=rows).argmax(1)
        values["holdout_accuracy"] = metrics.accuracy(predicted, train.labels[rows])
        values["n_holdout"] = len(rows)
    if isolation is not None:
        values["n_flagged"], values["n_train"] = int(isolation.flagged.sum()), len(isolation.flagged)
    if truth is not None:
        values["n_poison"], values["n_cover"] = int(truth.poison.sum()), int(truth.cover.sum())
        if isolation is not None:
            values |= metrics.isolation_quality(isolation.scores, isolation.flagged, truth.poison, truth.cover)
    return Metrics(**values)  # type: ignore[arg-type]
