"""How far a grid is: the time that is left, the live table and the plain lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from antibackdoor.benchmark.measure import Task, failed
from antibackdoor.benchmark.watch import seconds_of, time_left
from antibackdoor.console_grid import GridConsole


def done(cell, seconds, ca=0.9, asr=None):
    metrics = {"ca": ca, "asr": asr, "ra": None}
    record = {"key": cell.key, "cell": cell.names, "status": "done", "error": None, "metrics": metrics}
    return {**record, "seconds": {"load": 1.0, "train": seconds - 1.0}}


@pytest.fixture
def cells(grid):
    return grid().cells()


def test_time_left_is_the_mean_of_the_defence(cells):
    none, abl = (next(cell for cell in cells if cell.defence == name) for name in ("none", "abl-modified"))
    records = [done(none, 10), done(none, 20), done(abl, 60)]
    assert seconds_of(records[0]) == 10
    assert time_left(["none", "abl-modified", "abl-modified"], records, 1) == pytest.approx(15 + 60 + 60)
    assert time_left(["none", "abl-modified", "abl-modified"], records, 3) == pytest.approx(45)
    assert time_left(["other"], records, 1) == pytest.approx(30)
    assert time_left([], records, 1) == 0
    assert time_left(["none"], [], 1) is None
    assert time_left(["none"], [failed(none, "X", "x")], 1) is None


def screen(cells, *, terminal):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    return text, GridConsole(console=console)


def test_lines_where_there_is_no_terminal(cells):
    text, watcher = screen(cells, terminal=False)
    watcher.begin(cells, [done(cells[0], 10)], 2)
    for cell, record in ((cells[1], done(cells[1], 30, asr=0.25)), (cells[2], failed(cells[2], "DataError", "gone"))):
        watcher.started(Task(cell, "measure"))
        watcher.ended(Task(cell, "measure"), record)
    watcher.close()
    assert text.getvalue().splitlines() == [
        "4 cells, 3 to run, 2 at once",
        f"2/4 {cells[1].title}: CA 90.0 %, ASR 25.0 %, 30 s, about 20 s left",
        f"3/4 {cells[2].title}: failed: DataError: gone, about 15 s left",
    ]


def test_the_table_of_a_terminal(cells):
    text, watcher = screen(cells, terminal=True)
    watcher.begin(cells, [], 2)
    watcher.ended(Task(cells[0], "measure"), done(cells[0], 7200, ca=0.5))
    watcher.ended(Task(cells[1], "measure"), failed(cells[1], "DataError", "gone [bold]"))
    watcher.started(Task(cells[2], "plant"))
    watcher.started(Task(cells[3], "measure"))
    paper = Console(file=io.StringIO(), width=120, record=True)
    paper.print(watcher.table())
    shown = paper.export_text()
    assert "cells: 2/4 done, 2 running, 1 failed, about 2.0 h left" in shown
    assert "CA 50.0 %, 7200 s" in shown
    assert "DataError: gone [bold]" in shown
    assert "poisoning, 0 s" in shown
    assert "running, 0 s" in shown
    watcher.ended(Task(cells[2], "plant"), None)
    paper.print(watcher.table())
    assert "poisoning" not in paper.export_text()
    watcher.close()
    assert "cells: 2/4 done" in text.getvalue()


def test_quiet_is_quiet(cells, capsys):
    watcher = GridConsole(quiet=True)
    watcher.begin(cells, [], 1)
    watcher.ended(Task(cells[0], "measure"), done(cells[0], 1))
    watcher.close()
    assert capsys.readouterr().out == ""
