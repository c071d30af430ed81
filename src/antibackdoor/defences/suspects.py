"""What else can be done with suspects than dropping them: forget them, or learn them without their labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from antibackdoor.ops.objectives import ce, complement
from antibackdoor.training import Fit, Phase, Step, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet

__all__ = ["learn_relabelled", "relabelled", "unlearn"]

# Updates of the unlearning, and its peak learning rate as a share of the plan's.
_UPDATES, _GENTLE = 200, 0.05
# Epochs of learning on relabelled suspects, as a share of the plan's, and the peak learning rate likewise.
_LONGER, _SLOWER = 0.25, 0.1


def unlearn(model: nn.Module, data: ImageSet, suspects: Tensor, calm: Tensor, *, fit: Fit, plan: TrainPlan) -> History:
    """Let a finished network forget the labels of suspects, while images beside them hold the classes.

    About 200 updates, one epoch at least, minimise the mean cross-entropy of the calm images plus the mean
    complementary cross-entropy of the suspects, which is bounded and fades as they are forgotten, so that nothing runs
    away. Normalisation statistics are frozen, gradients bounded; if a loss is not finite all the same, the last good
    weights stay.

    Args:
        model: Trained in place.
        data: The set.
        suspects: bool (N,).
        calm: bool (N,), images that are above suspicion.
        fit: The training loop.
        plan: Of ordinary training.
    """
    seen = suspects | calm
    epochs = max(1, round(_UPDATES * plan.batch_size / int(seen.sum())))
    gentle = plan.but(
        warmup=0.0, ema=0.0, epochs=epochs, lr=_GENTLE * plan.lr, schedule="cosine", augment=(), weight_decay=0.0
    )
    phase = Phase("unlearn", gentle, freeze_norm=True, clip_norm=1.0, stop_on_nonfinite=True)

    def objective(step: Step) -> Tensor:
        chosen = suspects.to(step.index.device)[step.index].float()
        rest = 1 - chosen
        kept = (step.losses * rest).sum() / rest.sum().clamp_min(1)
        return kept + (complement(step.logits, step.labels) * chosen).sum() / chosen.sum().clamp_min(1)

    return fit(model, data, phase, objective=objective, subset=seen)


def relabelled(probabilities: Tensor, labels: Tensor, suspects: Tensor, *, confident: float) -> tuple[Tensor, Tensor]:
    """Give suspects the labels that a network which never saw them sees in them.

    Args:
        probabilities: float (N, K), of that network.
        labels: int64 (N,), as observed.
        suspects: bool (N,).
        confident: Least probability of a new label.

    Returns:
        int64 (N,), new labels where there is one and the observed elsewhere; bool (N,), the suspects that have one. A
        suspect in which the network sees the label that it came with stays out: clean-label poison has the right one.
    """
    best = probabilities.max(1)
    accepted = suspects & (best.values >= confident) & (best.indices != labels)
    return torch.where(accepted, best.indices, labels), accepted


def learn_relabelled(
    model: nn.Module,
    data: ImageSet,
    suspects: Tensor,
    kept: Tensor,
    *,
    confident: float,
    fit: Fit,
    plan: TrainPlan,
) -> tuple[History | None, int]:
    """Let a finished network learn suspects, which it was not shown, under the labels that it sees in them.

    Args:
        model: Trained in place, for a quarter of the plan's epochs.
        data: The set.
        suspects: bool (N,).
        kept: bool (N,), what the network was trained on.
        confident: Least probability of a new label.
        fit: The training loop.
        plan: Of ordinary training.

    Returns:
        What the training left, None where no suspect got a label; and how many did.
    """
    probabilities = logits_of(model, data, fit.runtime).softmax(1)
    # All processes must learn the same images.
    labels, accepted = fit.runtime.first(relabelled(probabilities, data.labels, suspects & ~kept, confident=confident))
    count = int(accepted.sum())
    if not count:
        return None, 0
    slower = plan.but(epochs=max(1, round(_LONGER * plan.epochs)), lr=_SLOWER * plan.lr, schedule="cosine")

    def objective(step: Step) -> Tensor:
        return ce(step.logits, labels.to(step.index.device)[step.index]).mean()

    return fit(model, data, Phase("unlabelled", slower), objective=objective, subset=kept | accepted), count
