"""The decision on the figures of the bank's development runs: what it names, and that it accuses no clean set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from antibackdoor.defences.witnesses.decide import combined, p_values

RUNS = json.loads((Path(__file__).parent / "bank.json").read_text(encoding="utf-8"))
CLEAN = {name: run for name, run in RUNS.items() if not run["poison"]}
LEARNED = {name: run for name, run in RUNS.items() if run["poison"] and min(run["success"]) >= 0.8}


def accused(run: dict) -> set[int]:
    """Return the classes that are accused at 1 %."""
    labels = [one["label"] for one in run["classes"]]
    sums = [max(combined(part["figures"]) for part in one["parts"]) for one in run["classes"]]
    _, adjusted = p_values([(most, one.get("origin", 0.0)) for most, one in zip(sums, run["classes"], strict=True)])
    return {label for label, p_value in zip(labels, adjusted, strict=True) if p_value <= 0.01}


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_set_is_not_accused(name: str) -> None:
    assert accused(CLEAN[name]) == set()


def test_what_is_learned_is_named() -> None:
    truth = {name: {one["label"] for one in run["classes"] if one["poison"]} for name, run in LEARNED.items()}
    named = {name: accused(run) for name, run in LEARNED.items()}
    assert len(truth) >= 20
    assert all(named[name] <= truth[name] for name in truth), "no wrong class"
    missed = [name for name in truth if named[name] != truth[name]]
    assert len(missed) <= MISSED, missed


# Blend in one of two classes, and Blend of 80 % (docs/log.md, 2026-12-01). Fewer is better: then this is to be lowered.
MISSED = 2
