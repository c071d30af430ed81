"""Signals, one file each. To add one: its file, and its line in ``SIGNALS``."""

from antibackdoor.isolation.signals.activation_clusters import ActivationClusters
from antibackdoor.isolation.signals.aul import Aul
from antibackdoor.isolation.signals.base import NetworkSignal, Signal, measured
from antibackdoor.isolation.signals.flare import Flare
from antibackdoor.isolation.signals.ibd_psc import IbdPsc
from antibackdoor.isolation.signals.loss import Loss
from antibackdoor.isolation.signals.loss_drop import LossDrop
from antibackdoor.isolation.signals.mspc import Mspc
from antibackdoor.isolation.signals.pipd import Pipd
from antibackdoor.isolation.signals.scale_up import ScaleUp
from antibackdoor.isolation.signals.spectral import Spectral
from antibackdoor.isolation.signals.telltale import TellTale
from antibackdoor.isolation.signals.trajectory import Trajectory
from antibackdoor.registry import Registry

__all__ = [
    "SIGNALS",
    "ActivationClusters",
    "Aul",
    "Flare",
    "IbdPsc",
    "Loss",
    "LossDrop",
    "Mspc",
    "NetworkSignal",
    "Pipd",
    "ScaleUp",
    "Signal",
    "Spectral",
    "TellTale",
    "Trajectory",
    "measured",
]

SIGNALS: Registry[Signal] = Registry(
    "signal",
    {
        "activation-clusters": ActivationClusters,
        "aul": Aul,
        "flare": Flare,
        "ibd-psc": IbdPsc,
        "loss": Loss,
        "loss-drop": LossDrop,
        "mspc": Mspc,
        "pipd": Pipd,
        "scale-up": ScaleUp,
        "spectral": Spectral,
        "telltale": TellTale,
        "trajectory": Trajectory,
    },
    base=Signal,
)
