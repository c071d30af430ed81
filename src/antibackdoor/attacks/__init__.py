"""Attacks, one file each. To add one: its file, and its line in ``ATTACKS``."""

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
from antibackdoor.attacks.cba import Composite
from antibackdoor.attacks.cl import LabelConsistent
from antibackdoor.attacks.compose import Compose
from antibackdoor.attacks.dfst import Dfst
from antibackdoor.attacks.dynamic import Dynamic
from antibackdoor.attacks.fc import FeatureCollision
from antibackdoor.attacks.flip import Flip
from antibackdoor.attacks.lba import LatentBackdoor
from antibackdoor.attacks.lf import LowFrequency
from antibackdoor.attacks.narcissus import Narcissus
from antibackdoor.attacks.sig import Sig
from antibackdoor.attacks.ssba import Ssba
from antibackdoor.attacks.tact import TaCT
from antibackdoor.attacks.titim import Titim
from antibackdoor.attacks.trojan import Trojan
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
    "Compose",
    "Composite",
    "Dfst",
    "DirtyLabelAttack",
    "Dynamic",
    "FeatureCollision",
    "Flip",
    "LabelConsistent",
    "LatentBackdoor",
    "LowFrequency",
    "Narcissus",
    "RateOf",
    "Sig",
    "Ssba",
    "TaCT",
    "Titim",
    "Trojan",
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
        "cba": Composite,
        "cl": LabelConsistent,
        "compose": Compose,
        "dfst": Dfst,
        "dynamic": Dynamic,
        "fc": FeatureCollision,
        "flip": Flip,
        "lba": LatentBackdoor,
        "lf": LowFrequency,
        "narcissus": Narcissus,
        "sig": Sig,
        "ssba": Ssba,
        "tact": TaCT,
        "titim": Titim,
        "trojan": Trojan,
        "wanet": WaNet,
    },
    base=Attack,
)

# What it is made of stands in the table that it stands in.
Compose.table = ATTACKS
