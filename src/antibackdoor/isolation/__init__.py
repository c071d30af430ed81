"""Isolation: signals (evidence -> scores) and decisions (scores -> flagged images)."""

from antibackdoor.isolation.decide import Scope, flag_share, most_suspect_first, rank_within_classes
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.recorder import LossRecorder, isolate
from antibackdoor.isolation.signals import SIGNALS, Loss, LossDrop, NetworkSignal, Signal, Trajectory, measured

__all__ = [
    "SIGNALS",
    "Evidence",
    "Loss",
    "LossDrop",
    "LossRecorder",
    "Measure",
    "Network",
    "NetworkSignal",
    "Scope",
    "Signal",
    "Trajectory",
    "flag_share",
    "isolate",
    "measured",
    "most_suspect_first",
    "rank_within_classes",
]
