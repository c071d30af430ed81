"""Training: the one loop, its plans, the device it runs on, its checkpoints."""

from antibackdoor.training.checkpoint import Checkpoints
from antibackdoor.training.inference import evaluating, logits_of
from antibackdoor.training.loop import Trainer
from antibackdoor.training.plan import Phase, TrainPlan
from antibackdoor.training.runtime import Runtime
from antibackdoor.training.step import Fit, Objective, Step, mean_loss

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
