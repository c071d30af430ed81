"""Isolation: signals (evidence -> scores) and decisions (scores -> flagged images)."""

from antibackdoor.isolation.alarm import Alarm, AnyCut
from antibackdoor.isolation.channels import ChannelCut, channel_maxima, cut_by_channels
from antibackdoor.isolation.control import with_planted_copies
from antibackdoor.isolation.copies import repeated
from antibackdoor.isolation.cuts import FULL_CLASS, Cut, cut_classes, sharpened
from antibackdoor.isolation.decide import Scope, flag_share, most_suspect_first, rank_within_classes
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.late import LateCut, late_cuts
from antibackdoor.isolation.look import Look, look
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.news import NewCut, new_cuts, news
from antibackdoor.isolation.recorder import LossRecorder, isolate
from antibackdoor.isolation.referee import Ruling, ruling
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
from antibackdoor.isolation.verdict import agree, strongest, verdict_of

__all__ = [
    "FULL_CLASS",
    "SIGNALS",
    "ActivationClusters",
    "Alarm",
    "AnyCut",
    "Aul",
    "ChannelCut",
    "Cut",
    "Evidence",
    "Flare",
    "IbdPsc",
    "LateCut",
    "Look",
    "Loss",
    "LossDrop",
    "LossRecorder",
    "Measure",
    "Mspc",
    "Network",
    "NetworkSignal",
    "NewCut",
    "Pipd",
    "Ruling",
    "ScaleUp",
    "Scope",
    "Signal",
    "Spectral",
    "TellTale",
    "Trajectory",
    "agree",
    "channel_maxima",
    "cut_by_channels",
    "cut_classes",
    "flag_share",
    "head_of",
    "isolate",
    "late_cuts",
    "look",
    "measured",
    "most_suspect_first",
    "new_cuts",
    "news",
    "penultimate",
    "rank_within_classes",
    "repeated",
    "ruling",
    "sharpened",
    "strongest",
    "verdict_of",
    "with_planted_copies",
]
