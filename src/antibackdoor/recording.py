"""What a run's record says beside its figures: versions, settings, data, remarks, seconds."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from antibackdoor.attacks import Attack
from antibackdoor.config import RunConfig
from antibackdoor.deciding import Decided
from antibackdoor.defences import Defence
from antibackdoor.isolation.contributors import flagged_by_group
from antibackdoor.models import ModelSpec
from antibackdoor.registry import parameters_of
from antibackdoor.types import ImageSet, Isolation, Json, Outcome

__all__ = ["Clock", "by_group", "describe", "digest", "remarks", "resolve", "versions"]


_MOST_GROUPS = 1000


@dataclass
class Clock:
    """Wall-clock seconds by phase.

    Attributes:
        seconds: Of every phase so far, rounded to milliseconds.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds towards a phase."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done within towards a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that compute, and a hash of this package's code."""
    names = ("antibackdoor", "torch", "numpy", "scikit-learn", "pillow", "accelerate", "safetensors")
    found = {name: version(name) for name in names}
    return {"python": platform.python_version(), **found, "antibackdoor code": _code_digest()}


@cache
def _code_digest() -> str:
    """Return a hash of this package's files of code: between two releases the version says nothing."""
    folder, total = Path(__file__).parent, hashlib.blake2b(digest_size=6)
    for path in sorted(folder.rglob("*.py")):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def digest(data: ImageSet) -> str:
    """Return a hash of pixels and labels: a run must not be continued on data that changed."""
    total = hashlib.blake2b(digest_size=16)
    for part in (data.images, data.labels):
        for rows in part.split(4096):
            total.update(rows.contiguous().numpy().tobytes())
    return total.hexdigest()


def resolve(config: RunConfig, spec: ModelSpec, defence: Defence, attack: Attack | None) -> dict[str, Json]:
    """Return the settings of a run with the parameters that its methods have in fact.

    Args:
        config: As given.
        spec: Of the network.
        defence: Ready to run.
        attack: As planted, or None.
    """
    values = config.recorded()
    values["model"] = spec.name
    values["defence"] = {"name": config.defence.name, **_plain(parameters_of(defence))}
    if config.attack is not None and attack is not None:
        own: dict[str, Json] = {
            "name": config.attack.name,
            "rate": config.attack.rate,
            "rate_of": config.attack.rate_of,
        }
        values["attack"] = {**own, "seed": config.attack.seed, **_plain(parameters_of(attack))}
    return values


def _plain(params: dict[str, object]) -> dict[str, Json]:
    simple = (str, int, float, bool, type(None))
    return {
        key: value if isinstance(value, simple) else list(value) if isinstance(value, tuple) else str(value)
        for key, value in params.items()
    }


def remarks(outcome: Outcome, held_out: Tensor | None, decided: Decided | None) -> list[str]:
    """Return a sentence for whatever a reader of the figures should know of how they came about.

    Args:
        outcome: Of the defence.
        held_out: bool (N,), images that no training saw, or None.
        decided: What a person had decided, or None.
    """
    said = [f"Training ended early: {h.stopped}." for h in outcome.histories if h.stopped]
    if decided is not None:
        said.append(decided.sentence())
    if held_out is not None:
        said.append(
            f"{int(held_out.sum())} images were held out to measure accuracy. This part comes from the same source and "
            "may be poisoned too."
        )
    return said


def describe(
    data: ImageSet, test: ImageSet | None, held_out: Tensor | None, decided: Decided | None
) -> dict[str, Json]:
    """Return what a record says of the data.

    Args:
        data: What was trained on, N images.
        test: The test set, or None.
        held_out: bool (N,), images that no training saw, or None.
        decided: What a person had decided, or None.
    """
    channels, height, width = data.shape
    return {
        "name": data.name,
        "images": len(data),
        "test_images": 0 if test is None else len(test),
        "held_out": 0 if held_out is None else int(held_out.sum()),
        "classes": list(data.classes),
        "channels": channels,
        "height": height,
        "width": width,
        "white": data.white,
        "skipped": list(data.skipped),
        "decisions": None if decided is None else decided.to_json(),
    }


def by_group(column: str, groups: Mapping[str, str], data: ImageSet, found: Isolation) -> dict[str, Json]:
    """Return whose images are flagged; of many groups the 1,000 that stand out most.

    Args:
        column: What the groups are called.
        groups: The group of each id.
        data: What was trained on, N images.
        found: What the defence flagged.
    """
    names = [groups.get(name, "") for name in data.ids]
    counted = flagged_by_group(names, data.labels.numpy(), found.flagged.numpy())
    listed: list[Json] = [{**asdict(group), "stands_out": group.stands_out} for group in counted[:_MOST_GROUPS]]
    return {"column": column, "count": len(counted), "groups": listed}
