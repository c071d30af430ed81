"""The only definitions of the field's metrics in this package. Fractions throughout; None where the set is empty."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accuracy", "attack_success_rate", "defence_effectiveness", "isolation_quality", "robust_accuracy"]


def accuracy(predicted: Tensor, labels: Tensor) -> float | None:
    """Return the share of rows predicted as labelled (CA on a clean test set, RA on a triggered one).

    Args:
        predicted: int64 (N,).
        labels: int64 (N,).
    """
    if labels.numel() == 0:
        return None
    return float((predicted == labels).double().mean())


def attack_success_rate(predicted: Tensor, aimed: Tensor) -> float | None:
    """Return the share of triggered test images that are predicted as the attacker wants.

    Args:
        predicted: int64 (N,), predictions on triggered images whose own class is not the aimed one.
        aimed: int64 (N,), the class the attacker wants for each: the target, or ``(y + 1) mod K`` for all-to-all.
    """
    return accuracy(predicted, aimed)


def robust_accuracy(predicted: Tensor, original_labels: Tensor) -> float | None:
    """Return the share of the same triggered images that are predicted as their own class.

    Args:
        predicted: int64 (N,).
        original_labels: int64 (N,).
    """
    return accuracy(predicted, original_labels)


def defence_effectiveness(*, ca_before: float, asr_before: float, ca_after: float, asr_after: float) -> float:
    """Return DER, ``(max(0, dASR) - max(0, dCA) + 1) / 2`` with ``d = before - after``; 1 is best, 0.5 is no effect.

    Args:
        ca_before: Clean accuracy of undefended training.
        asr_before: Attack success rate of undefended training.
        ca_after: Clean accuracy of defended training.
        asr_after: Attack success rate of defended training.

    Source:
        Zhu et al., Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, ICCV 2023.
    """
    return (max(0.0, asr_before - asr_after) - max(0.0, ca_before - ca_after) + 1) / 2


def isolation_quality(scores: Tensor, flagged: Tensor, poison: Tensor, cover: Tensor) -> dict[str, float | None]:
    """Return precision, recall, fpr, auroc and auprc of an isolation.

    Args:
        scores: float (N,), higher is more suspect.
        flagged: bool (N,).
        poison: bool (N,), the truth.
        cover: bool (N,), rows that are neither poison nor clean; they are left out of every figure.

    Returns:
        Fractions by name; None where a denominator is empty (no flags, no poison, no clean image).
    """
    counted = ~cover
    scores, flagged, poison = scores[counted], flagged[counted], poison[counted]
    hits = int((flagged & poison).sum())
    n_flagged, n_poison = int(flagged.sum()), int(poison.sum())
    n_clean = int(poison.numel()) - n_poison
    quality: dict[str, float | None] = {
        "precision": hits / n_flagged if n_flagged else None,
        "recall": hits / n_poison if n_poison else None,
        "fpr": (n_flagged - hits) / n_clean if n_clean else None,
        "auroc": None,
        "auprc": None,
    }
    if n_poison and n_clean:
        from sklearn.metrics import average_precision_score, roc_auc_score

        truth, values = poison.numpy(), torch.nan_to_num(scores.double()).numpy()
        quality["auroc"] = float(roc_auc_score(truth, values))
        quality["auprc"] = float(average_precision_score(truth, values))
    return quality
