"""Attacks, one file each. To add one: its file, and its line in ``ATTACKS``."""

from antibackdoor.attacks.badnets import BadNets
from antibackdoor.attacks.base import (
    Attack,
    CleanLabelAttack,
    DirtyLabelAttack,
    RateOf,
    poison,
    triggered_test,
)
from antibackdoor.attacks.blend import Blend
from antibackdoor.attacks.sig import Sig
from antibackdoor.registry import Registry

__all__ = [
    "ATTACKS",
    "Attack",
    "BadNets",
    "Blend",
    "CleanLabelAttack",
    "DirtyLabelAttack",
    "RateOf",
    "Sig",
    "poison",
    "triggered_test",
]

ATTACKS: Registry[Attack] = Registry("attack", {"badnets": BadNets, "blend": Blend, "sig": Sig})
