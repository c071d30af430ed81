"""Synthetic records of a grid's cells."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Record = dict[str, Any]
# clean accuracy and attack success by defence; fine-pruning and nad are given trusted images, spectral the rate
QUALITY = {
    "none": (0.92, 0.99),
    "fine-pruning": (0.88, 0.40),
    "nad": (0.84, 0.06),
    "abl": (0.89, 0.03),
    "witnesses": (0.915, 0.02),
    "spectral": (0.90, 0.30),
}
GIVEN = {"fine-pruning": {"trusted_share": 0.05}, "nad": {"trusted_share": 0.05}, "spectral": {"rate": None}}
EPOCHS = 6
CLEAN_CONTROL = {"ca": 0.93, "asr": None, "ra": None}


def make_record(
    *,
    data: str = "cifar10",
    model: str = "wrn-16-1",
    attack: str = "badnets",
    rate: float | None = 0.1,
    defence: str = "none",
    label: str | None = None,
    seed: int = 0,
    params: dict[str, Any] | None = None,
    error: str | None = None,
    **metrics: float | None,
) -> Record:
    """One record; ``metrics`` lays figures over the synthetic ones."""
    rate = None if attack == "none" else rate
    noise = random.Random(f"{data} {model} {attack} {rate} {defence} {label} {params} {seed}")
    ca, asr = QUALITY.get(defence, QUALITY["none"])
    poisoned = attack != "none"
    figures: dict[str, float | int | None] = {
        "ca": ca + noise.uniform(-0.01, 0.01),
        "asr": min(1.0, asr + noise.uniform(0, 0.01)) if poisoned else None,
        "ra": 0.95 * (1 - asr) if poisoned else None,
        "precision": 0.9 + noise.uniform(-0.02, 0.02) if poisoned and defence in ("abl", "witnesses") else None,
        "recall": 0.1 if poisoned and defence == "abl" else None,
        "fpr": 0.001,
        "auroc": 0.99 if poisoned else None,
        "n_poison": 500 if poisoned else 0,
        "n_train": 5000,
    }
    settings = {"name": defence, **GIVEN.get(defence, {}), **(params or {})}
    evidence = (
        ["This defence was given 250 trusted images, 5 % of the training images."]
        if "trusted_share" in settings
        else []
    )
    evidence += (
        ["This defence was given the true rate of poison, 10 % of the images."]
        if defence == "spectral" and "rate" not in (params or {})
        else []
    )
    isolates = defence in ("abl", "witnesses")
    curves = None
    if poisoned:
        falls = [math.exp(-1.2 * epoch) + 0.02 * noise.random() for epoch in range(EPOCHS)]
        curves = {
            "phase": "isolate" if isolates else "train",
            "loss_poison": [2.3 * fall for fall in falls],
            "loss_clean": [2.3 * math.exp(-0.3 * epoch) + 0.05 * noise.random() for epoch in range(EPOCHS)],
            "precision": {
                share: [min(1.0, (1.1 - 2 * float(share)) * (1 - fall)) for fall in falls]
                for share in ("0.01", "0.05", "0.1", "0.2")
            },
        }
    return {
        "format": "antibackdoor cell 1",
        "key": f"{attack}-{rate}-{defence}-{label}-{seed}",
        "cell": {
            "data": data,
            "attack": attack,
            "attack_label": attack,
            "rate": rate,
            "defence": defence,
            "defence_label": label or defence,
            "model": model,
            "seed": seed,
        },
        "config": {
            "data": {"source": data},
            "model": model,
            "attack": {"name": attack, "rate": rate} if poisoned else None,
            "defence": settings,
            "train": {"epochs": 20},
            "seed": seed,
        },
        "status": "failed" if error else "done",
        "error": {"type": "NonFiniteLossError", "message": error} if error else None,
        "metrics": None if error else {**figures, **(metrics if poisoned else metrics | dict.fromkeys(("asr", "ra")))},
        "control": None if error else {"ca": 0.93, "asr": 0.01, "ra": 0.92} if poisoned else CLEAN_CONTROL,
        "verdict": "poisoned" if isolates and poisoned else "undecided",
        "evidence": evidence,
        "seconds": {"train": 60.0},
        "train_seconds": 60.0 if defence == "none" else 90.0,
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "device": {"type": "cpu", "name": "Some CPU", "precision": "bfloat16", "threads": 2},
        "curves": None if error else curves,
    }


def make_grid(
    *,
    data: Iterable[str] = ("cifar10",),
    attacks: Iterable[str] = ("none", "badnets", "sig"),
    rates: Iterable[float] = (0.1,),
    defences: Iterable[str] = ("none", "nad", "abl", "witnesses"),
    seeds: Iterable[int] = (0, 1, 2),
    params: Iterable[dict[str, Any]] = ({},),
    **metrics: float | None,
) -> list[Record]:
    """A whole grid."""
    rates, defences, seeds, params = tuple(rates), tuple(defences), tuple(seeds), tuple(params)
    return [
        make_record(data=name, attack=attack, rate=rate, defence=defence, seed=seed, params=own, **metrics)
        for name in data
        for attack in attacks
        for rate in (rates if attack != "none" else (None,))
        for defence in defences
        for seed in seeds
        for own in (params if defence != "none" else ({},))
    ]


@pytest.fixture
def record() -> Callable[..., Record]:
    """Makes one record; see ``make_record``."""
    return make_record


@pytest.fixture
def grid() -> Callable[..., list[Record]]:
    """Makes the records of a grid; see ``make_grid``."""
    return make_grid
