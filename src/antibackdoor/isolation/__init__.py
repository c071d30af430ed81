"""Isolation: signals (evidence -> scores) and decisions (scores -> flagged images)."""

from antibackdoor.isolation.cuts import Cut, cut_classes, sharpened
from antibackdoor.isolation.decide import Scope, flag_share, most_suspect_first, rank_within_classes
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.recorder import LossRecorder, isolate
from antibackdoor.isolation.signals import SIGNALS, Loss, LossDrop, NetworkSignal, Signal, Trajectory, measured
from antibackdoor.isolation.signals.features import penultimate

__all__ = [
    "SIGNALS",
    "Cut",
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
    "cut_classes",
    "isolate",
    "measured",
    "most_suspect_first",
    "penultimate",
    "rank_within_classes",
    "sharpened",
]
