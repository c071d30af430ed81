"""SIGKILL at writes and at random moments: the second call ends with the bytes of a run that nobody killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from killing import Command, Mortal, torture

SAMPLED = {"train (abl-modified)": 3, "poison": 4, "export": 2, "report": 2, "review": 4}
LONG = ["train (default)", "train (d-br)", "bench"]
ALL = [*SAMPLED, *LONG, "scan", "export (list)", "predict", "compare"]


@pytest.mark.parametrize("name", SAMPLED)
def test_killed_at_some_writes_and_moments(name: str, killable: tuple[Mortal, dict[str, Command], Path]) -> None:
    run, commands, folder = killable
    torture(run, commands[name], folder, writes=SAMPLED[name], moments=1)
    assert commands[name].faults == []
    assert commands[name].survived == commands[name].kills >= SAMPLED[name]


@pytest.mark.parametrize("name", LONG)
def test_killed_once(name: str, killable: tuple[Mortal, dict[str, Command], Path]) -> None:
    run, commands, folder = killable
    torture(run, commands[name], folder, writes=1, moments=0)
    assert commands[name].faults == []
    assert commands[name].survived == commands[name].kills > 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ALL)
def test_killed_at_every_write_and_at_200_moments(name: str, killable: tuple[Mortal, dict[str, Command], Path]) -> None:
    run, commands, folder = killable
    moments = int(os.environ.get("FAULT_MOMENTS", "200"))
    torture(run, commands[name], folder, writes=None, moments=moments)
    assert commands[name].faults == []
    assert commands[name].survived == commands[name].kills > 0
