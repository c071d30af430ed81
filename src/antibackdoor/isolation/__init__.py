"""Isolation: signals (evidence -> scores) and decisions (scores -> flagged images)."""

from antibackdoor.isolation.decide import Scope, flag_share, most_suspect_first, rank_within_classes
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.recorder import LossRecorder, isolate
from antibackdoor.isolation.signals import (
    SIGNALS,
    ActivationClusters,
    Aul,
    Flare,
    IbdPsc,
    Loss,
    LossDrop,
    Mspc,
    NetworkSignal,
    Pipd,
    ScaleUp,
    Signal,
    Spectral,
    TellTale,
    Trajectory,
    measured,
)
from antibackdoor.isolation.signals.features import head_of, penultimate

__all__ = [
    "SIGNALS",
    "ActivationClusters",
    "Aul",
    "Evidence",
    "Flare",
    "IbdPsc",
    "Loss",
    "LossDrop",
    "LossRecorder",
    "Measure",
    "Mspc",
    "Network",
    "NetworkSignal",
    "Pipd",
    "ScaleUp",
    "Scope",
    "Signal",
    "Spectral",
    "TellTale",
    "Trajectory",
    "flag_share",
    "head_of",
    "isolate",
    "measured",
    "most_suspect_first",
    "penultimate",
    "rank_within_classes",
]
