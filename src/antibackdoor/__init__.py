"""Train a clean image classifier on data that may be poisoned, and name the images that should not be there.

The names below are imported when they are first used, so ``import antibackdoor`` itself does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from antibackdoor.api import Result, load_plugin, scan, train
    from antibackdoor.attacks import ATTACKS, poison, triggered_test
    from antibackdoor.config import RunConfig
    from antibackdoor.data.sources import from_arrays, from_dataset, load
    from antibackdoor.defences import DEFENCES
    from antibackdoor.errors import AntiBackdoorError
    from antibackdoor.isolation import SIGNALS, LossRecorder

__all__ = [
    "ATTACKS",
    "DEFENCES",
    "SIGNALS",
    "AntiBackdoorError",
    "LossRecorder",
    "Result",
    "RunConfig",
    "from_arrays",
    "from_dataset",
    "load",
    "load_plugin",
    "poison",
    "scan",
    "train",
    "triggered_test",
]

_HOMES = {
    "ATTACKS": "attacks",
    "AntiBackdoorError": "errors",
    "DEFENCES": "defences",
    "LossRecorder": "isolation",
    "Result": "api",
    "RunConfig": "config",
    "SIGNALS": "isolation",
    "from_arrays": "data.sources",
    "from_dataset": "data.sources",
    "load": "data.sources",
    "load_plugin": "api",
    "poison": "attacks",
    "scan": "api",
    "train": "api",
    "triggered_test": "attacks",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'antibackdoor' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"antibackdoor.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
