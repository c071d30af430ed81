"""Every error that a user can cause, in one tree.

AntiBackdoorError                 what the user gave is wrong, or the surroundings failed; the command exits with 2
├── ConfigError                   a value, key or combination of settings that cannot work
│   └── UnknownNameError          a name that no table holds; carries the nearest known one
├── DataError                     images or labels that cannot be used
├── PoisonError                   a poisoning that the data cannot carry (too few candidates, no such class)
├── DeviceError                   a device that is not there
├── RunExistsError                the output folder holds another run
├── StorageError                  a file that cannot be written or read (full disk, damaged record)
└── TrainingError                 training that cannot go on
    └── NonFiniteLossError        the loss became infinite or not a number

Anything else that escapes is a fault of ours, and the command exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AntiBackdoorError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "NonFiniteLossError",
    "PoisonError",
    "RunExistsError",
    "StorageError",
    "TrainingError",
    "UnknownNameError",
    "one_line",
]


_SHOWN = 40


class AntiBackdoorError(Exception):
    """The root: says what was given, what was expected, and what to do."""


class ConfigError(AntiBackdoorError):
    """A setting that cannot work; the message starts with its path, such as ``defence.gamma``."""


class UnknownNameError(ConfigError):
    """A name that no table holds."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        lower = {name.casefold(): name for name in names}
        near = [lower[n] for n in difflib.get_close_matches(given.casefold(), lower, n=1, cutoff=0.5)]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        super().__init__(f"unknown {kind} {given!r}.{hint} Known: {shown or 'none'}")
        self.given = given
        self.nearest = near[0] if near else None


class DataError(AntiBackdoorError):
    """Images or labels that cannot be used."""


class PoisonError(AntiBackdoorError):
    """A poisoning that the data cannot carry."""


class DeviceError(AntiBackdoorError):
    """A device that is not there."""


class RunExistsError(AntiBackdoorError):
    """The output folder holds another run."""


class StorageError(AntiBackdoorError):
    """A file that cannot be written or read."""


class TrainingError(AntiBackdoorError):
    """Training that cannot go on."""


class NonFiniteLossError(TrainingError):
    """The training loss became infinite or not a number."""


def one_line(message: str) -> str:
    """Return a message as one line that a terminal shows as it is: controls and invisible marks are escaped."""
    line = " ".join(message.split())
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)
