"""Training: the one loop, its plans, the device it runs on, its checkpoints."""

from antibackdoor.training.checkpoint import Checkpoints
from antibackdoor.training.inference import evaluating, logits_of
from antibackdoor.training.loop import Fit, Objective, Step, Trainer, mean_loss
from antibackdoor.training.plan import Phase, TrainPlan
from antibackdoor.training.runtime import Runtime

__all__ = [
    "Checkpoints",
    "Fit",
    "Objective",
    "Phase",
    "Runtime",
    "Step",
    "TrainPlan",
    "Trainer",
    "evaluating",
    "logits_of",
    "mean_loss",
]
