"""What the system refuses is one line and exit code 1 or 2; a second call ends as if nothing had been refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import Command, Mortal
from withholding import Row, refuse_changes

SAMPLED = {"train (abl-modified)": 2, "poison": 3, "export": 3, "export (list)": 1, "report": 2, "review": 4}


def check(row: Row) -> None:
    assert row.faults == []
    assert row.ended + row.went_on == row.refused == row.restored
    assert row.ended > 0


@pytest.mark.parametrize("name", SAMPLED)
def test_some_changes_to_the_disk_refused(name: str, killable: tuple[Mortal, dict[str, Command], Path]) -> None:
    run, commands, folder = killable
    start = list(SAMPLED).index(name)
    check(refuse_changes(run, commands[name], folder, places=SAMPLED[name], start=start))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "name",
    [*SAMPLED, "scan", "train (default)", "train (d-br)", "predict", "compare", "bench"],
)
def test_every_change_to_the_disk_refused(name: str, killable: tuple[Mortal, dict[str, Command], Path]) -> None:
    run, commands, folder = killable
    check(refuse_changes(run, commands[name], folder, places=None))
