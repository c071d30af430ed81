"""What every benchmark writes beside its figures: how, where and with what they were made."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from antibackdoor.pipeline import versions
from antibackdoor.training import Runtime


def made_by(device: str) -> dict[str, object]:
    """Return the command, the device, the platform and the versions of this run."""
    return {
        "command": " ".join(["python", *relative(sys.argv)]),
        "device": Runtime.create(device).describe(),
        "platform": platform.platform(),
        "versions": versions(),
    }


def relative(words: list[str]) -> list[str]:
    """Keep absolute paths of this machine out of the record."""
    return [("DIR" if Path(word).is_dir() else Path(word).name) if Path(word).is_absolute() else word for word in words]
