"""Isolation: signals (evidence -> scores) and decisions (scores -> flagged images)."""

from antibackdoor.isolation.decide import Scope, flag_share, most_suspect_first, rank_within_classes
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.recorder import LossRecorder, isolate
from antibackdoor.isolation.signals import SIGNALS, Loss, LossDrop, Signal, Trajectory

__all__ = [
    "SIGNALS",
    "Evidence",
    "Loss",
    "LossDrop",
    "LossRecorder",
    "Scope",
    "Signal",
    "Trajectory",
    "flag_share",
    "isolate",
    "most_suspect_first",
    "rank_within_classes",
]
