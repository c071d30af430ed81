"""Defences, one file each. To add one: its file, and its line in ``DEFENCES``."""

from antibackdoor.defences.abl import AblPaper, AblReleased
from antibackdoor.defences.base import Defence
from antibackdoor.defences.cbd import Cbd
from antibackdoor.defences.dbr import Dbr
from antibackdoor.defences.filter import Filter
from antibackdoor.defences.none import NoDefence
from antibackdoor.registry import Registry

__all__ = ["DEFENCES", "AblPaper", "AblReleased", "Cbd", "Dbr", "Defence", "Filter", "NoDefence"]

DEFENCES: Registry[Defence] = Registry(
    "defence",
    {
        "abl": AblReleased,
        "abl-paper": AblPaper,
        "cbd": Cbd,
        "d-br": Dbr,
        "filter": Filter,
        "none": NoDefence,
    },
)
