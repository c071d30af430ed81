"""What every benchmark writes beside its figures: how, where and with what they were made; means over seeds."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from antibackdoor.defences import FORMER_NAMES
from antibackdoor.pipeline import versions
from antibackdoor.training import Runtime


def made_by(device: str) -> dict[str, Any]:
    """Return the command, the device, the platform and the versions of this run."""
    return {
        "command": command(),
        "device": Runtime.create(device).describe(),
        "platform": platform.platform(),
        "versions": versions(),
    }


def command() -> str:
    """Return the command of this run, without this machine's paths."""
    return " ".join(["python", *relative(sys.argv)])


def commit() -> str | None:
    """Return the commit of the code, with "+" where files differ from it; None outside a repository."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def kept_cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells that a JSON holds already, none where there is no such file."""
    return of_now(json.loads(path.read_text(encoding="utf-8"))["cells"]) if path.exists() else []


def of_now(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return cells in which a defence that was renamed since they were made has the name that it has now."""
    now = {former: name for name, former in FORMER_NAMES.items()}
    return [{**cell, "defence": now[cell["defence"]]} if cell.get("defence") in now else dict(cell) for cell in cells]


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the JSON of a benchmark, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def relative(words: list[str]) -> list[str]:
    """Keep absolute paths of this machine out of the record."""
    return [("DIR" if Path(word).is_dir() else Path(word).name) if Path(word).is_absolute() else word for word in words]


def over_seeds(
    cells: Sequence[Mapping[str, Any]], keys: Iterable[str], *, worst: bool = False
) -> dict[str, float | None]:
    """Return mean (``key``), standard deviation (``key_sd``, None of one cell), on request the largest (``key_max``).

    Args:
        cells: Of one row; those without a figure are left out of it.
        keys: The figures; one that no cell has is left out.
        worst: Add the largest.
    """
    found: dict[str, float | None] = {}
    for key in keys:
        values = [float(cell[key]) for cell in cells if cell.get(key) is not None]
        if values:
            found[key] = round(fmean(values), 4)
            found[f"{key}_sd"] = round(stdev(values), 4) if len(values) > 1 else None
            if worst:
                found[f"{key}_max"] = round(max(values), 4)
    return found
