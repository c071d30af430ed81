"""Defences, one file each. To add one: its file, and its line in ``DEFENCES``."""

from antibackdoor.defences.abl import AblReleased
from antibackdoor.defences.abl_published import AblBackdoorBench, AblCode, AblPaper
from antibackdoor.defences.activation_clustering import ActivationClustering
from antibackdoor.defences.base import Defence, RatedDefence, RepairDefence
from antibackdoor.defences.cbd import Cbd
from antibackdoor.defences.dbr import Dbr
from antibackdoor.defences.filter import Filter
from antibackdoor.defences.fine_pruning import FinePruning
from antibackdoor.defences.mcr import Mcr
from antibackdoor.defences.nad import Nad
from antibackdoor.defences.none import NoDefence
from antibackdoor.defences.spectral import SpectralFilter
from antibackdoor.registry import Registry

__all__ = [
    "DEFENCES",
    "AblBackdoorBench",
    "AblCode",
    "AblPaper",
    "AblReleased",
    "ActivationClustering",
    "Cbd",
    "Dbr",
    "Defence",
    "Filter",
    "FinePruning",
    "Mcr",
    "Nad",
    "NoDefence",
    "RatedDefence",
    "RepairDefence",
    "SpectralFilter",
]

DEFENCES: Registry[Defence] = Registry(
    "defence",
    {
        "abl": AblReleased,
        "abl-backdoorbench": AblBackdoorBench,
        "abl-code": AblCode,
        "abl-paper": AblPaper,
        "activation-clustering": ActivationClustering,
        "cbd": Cbd,
        "d-br": Dbr,
        "filter": Filter,
        "fine-pruning": FinePruning,
        "mcr": Mcr,
        "nad": Nad,
        "none": NoDefence,
        "spectral": SpectralFilter,
    },
    base=Defence,
)
