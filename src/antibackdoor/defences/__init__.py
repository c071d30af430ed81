"""Defences, one file each. To add one: its file, and its line in ``DEFENCES``."""

from antibackdoor.defences.abl_modified import AblModified
from antibackdoor.defences.abl_published import AblBackdoorBench, AblCode, AblPaper
from antibackdoor.defences.activation_clustering import ActivationClustering
from antibackdoor.defences.agpd import Agpd
from antibackdoor.defences.base import Defence, FilterDefence, RatedDefence, RepairDefence, TrustedDefence
from antibackdoor.defences.cbd import Cbd
from antibackdoor.defences.confident_learning import Cleanlab
from antibackdoor.defences.dbr import Dbr
from antibackdoor.defences.fine_pruning import FinePruning
from antibackdoor.defences.mcr import Mcr
from antibackdoor.defences.nad import Nad
from antibackdoor.defences.none import NoDefence
from antibackdoor.defences.scan import Scan
from antibackdoor.defences.spectral import SpectralFilter
from antibackdoor.defences.witnesses import Witnesses
from antibackdoor.registry import Registry

__all__ = [
    "DEFENCES",
    "FORMER_NAMES",
    "AblBackdoorBench",
    "AblCode",
    "AblModified",
    "AblPaper",
    "ActivationClustering",
    "Agpd",
    "Cbd",
    "Cleanlab",
    "Dbr",
    "Defence",
    "FilterDefence",
    "FinePruning",
    "Mcr",
    "Nad",
    "NoDefence",
    "RatedDefence",
    "RepairDefence",
    "Scan",
    "SpectralFilter",
    "TrustedDefence",
    "Witnesses",
]

# Names under which committed records hold what has another name now.
FORMER_NAMES = {"abl-modified": "abl"}

DEFENCES: Registry[Defence] = Registry(
    "defence",
    {
        "abl-backdoorbench": AblBackdoorBench,
        "abl-code": AblCode,
        "abl-modified": AblModified,
        "abl-paper": AblPaper,
        "activation-clustering": ActivationClustering,
        "agpd": Agpd,
        "cbd": Cbd,
        "cleanlab": Cleanlab,
        "d-br": Dbr,
        "fine-pruning": FinePruning,
        "mcr": Mcr,
        "nad": Nad,
        "none": NoDefence,
        "scan": Scan,
        "spectral": SpectralFilter,
        "witnesses": Witnesses,
    },
    base=Defence,
    gone={
        "abl": "is called 'abl-modified' now, since it is a method of this package; Anti-Backdoor Learning as released "
        "is 'abl-code', as in its paper 'abl-paper', in BackdoorBench's recipe 'abl-backdoorbench'",
        "filter": "is no longer in this package: 'witnesses', the default, replaces it; runs that it made can be read",
    },
)
