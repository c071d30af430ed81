"""The demonstration: plant a trigger in the embedded images, train undefended and defended, show both."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from antibackdoor import serialising
from antibackdoor.config import DEFAULT_DEFENCE, Choice, PoisonConfig, RunConfig, TrainConfig
from antibackdoor.pipeline import run
from antibackdoor.progress import SILENT, Progress
from antibackdoor.types import Metrics

__all__ = ["DemoResult", "demo", "demo_config"]


@dataclass(frozen=True)
class DemoResult:
    """What the two runs measured.

    Attributes:
        undefended: Figures of ordinary training.
        defended: Figures of the default defence.
        seconds: Wall-clock seconds of each run, loading and report included.
    """

    undefended: Metrics
    defended: Metrics
    seconds: dict[str, float]


def demo_config(seed: int, defence: str) -> RunConfig:
    """Return the configuration of one run of the demonstration: BadNets in 10 % of the embedded training images."""
    return RunConfig(
        attack=PoisonConfig(name="badnets", rate=0.1),
        defence=Choice(name=defence),
        train=TrainConfig(epochs=15, augment=("flip",)),
        seed=seed,
    )


def demo(
    out: Path, *, seed: int = 0, defence: str = DEFAULT_DEFENCE, overwrite: bool = False, progress: Progress = SILENT
) -> DemoResult:
    """Run both, and write ``out/undefended``, ``out/defended`` and ``out/summary.json``.

    Args:
        out: Folder for the files.
        seed: Of every random choice.
        defence: The defence to show.
        overwrite: Replace the runs in ``out``.
        progress: Shows the work.

    Raises:
        RunExistsError: ``out`` holds such runs and overwrite was not given.
    """
    figures: dict[str, Metrics] = {}
    seconds: dict[str, float] = {}
    for title, name in (("undefended", "none"), ("defended", defence)):
        progress.say(f"{title} training ({name})")
        started = time.perf_counter()
        result = run(demo_config(seed, name), out=out / title, overwrite=overwrite, progress=progress)
        figures[title], seconds[title] = result.record.metrics, round(time.perf_counter() - started, 1)
    undefended, defended = figures["undefended"], figures["defended"]
    summary = {
        "undefended": {"ca": undefended.ca, "asr": undefended.asr},
        "defended": {
            "ca": defended.ca,
            "asr": defended.asr,
            "precision": defended.precision,
            "recall": defended.recall,
        },
        "seconds": round(sum(seconds.values()), 1),
    }
    serialising.write_json(out / "summary.json", summary)
    return DemoResult(undefended, defended, seconds)
