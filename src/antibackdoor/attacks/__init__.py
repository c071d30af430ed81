"""Attacks, one file each. To add one: its file, and its line in ``ATTACKS``.

The files of the optimised attacks (cba, cl, dfst, dynamic, fc, flip, lba, lf, narcissus, ssba, trojan) are here but not
in the table yet: their mechanisms are tested, their strength against a trained victim is still to be measured.
"""

from antibackdoor.attacks.adap_blend import AdapBlend
from antibackdoor.attacks.adap_patch import AdapPatch
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
from antibackdoor.attacks.bpp import Bpp
from antibackdoor.attacks.sig import Sig
from antibackdoor.attacks.tact import TaCT
from antibackdoor.attacks.wanet import WaNet
from antibackdoor.registry import Registry

__all__ = [
    "ATTACKS",
    "AdapBlend",
    "AdapPatch",
    "Attack",
    "BadNets",
    "Blend",
    "Bpp",
    "CleanLabelAttack",
    "DirtyLabelAttack",
    "RateOf",
    "Sig",
    "TaCT",
    "WaNet",
    "poison",
    "triggered_test",
]

ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "adap-blend": AdapBlend,
        "adap-patch": AdapPatch,
        "badnets": BadNets,
        "blend": Blend,
        "bpp": Bpp,
        "sig": Sig,
        "tact": TaCT,
        "wanet": WaNet,
    },
)
