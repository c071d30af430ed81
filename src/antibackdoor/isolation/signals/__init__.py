"""Signals, one file each. To add one: its file, and its line in ``SIGNALS``."""

from antibackdoor.isolation.signals.base import NetworkSignal, Signal, measured
from antibackdoor.isolation.signals.loss import Loss
from antibackdoor.isolation.signals.loss_drop import LossDrop
from antibackdoor.isolation.signals.trajectory import Trajectory
from antibackdoor.registry import Registry

__all__ = ["SIGNALS", "Loss", "LossDrop", "NetworkSignal", "Signal", "Trajectory", "measured"]

SIGNALS: Registry[Signal] = Registry("signal", {"loss": Loss, "loss-drop": LossDrop, "trajectory": Trajectory})
