"""The folder of a grid: written whole, held by one process, left alone where it is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from antibackdoor.benchmark import run_grid
from antibackdoor.benchmark.folder import CELL_FORMAT, claimed, read_records
from antibackdoor.errors import RunExistsError, StorageError

HOLD = """
import sys, pathlib, time
from antibackdoor.benchmark.folder import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def record(cell, **changes):
    return {"format": CELL_FORMAT, "key": cell.key, "cell": cell.names, "status": "done", **changes}


def test_records_come_back_in_the_order_of_the_grid(grid, tmp_path):
    cells = grid().cells()
    with claimed(tmp_path / "out") as folder:
        folder.begin(grid(), cells)
        assert [folder.record_of(cell) for cell in cells] == [None] * 4
        for cell in reversed(cells[1:]):
            folder.write(cell, record(cell))
        assert folder.record_of(cells[1]) == record(cells[1])
    assert read_records(tmp_path / "out") == [record(cell) for cell in cells[1:]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "grid.json", "cells"}


def test_a_record_that_cannot_be_used_is_as_if_it_were_not_there(grid, tmp_path):
    cell = grid().cells()[0]
    with claimed(tmp_path) as folder:
        folder.begin(grid(), [cell])
        path = tmp_path / "cells" / cell.file
        for text in ("", "{", "half a rec"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            assert folder.record_of(cell) is None
            assert read_records(tmp_path) == []
        path.write_text(json.dumps(record(cell, key="another")), encoding="utf-8")
        assert folder.record_of(cell) is None


@pytest.mark.parametrize("text", ['{"format": "antibackdoor cell 0"}', '{"key": 1}', "[]"])
def test_a_record_of_another_format_is_left_alone(grid, tmp_path, text):
    cells = grid().cells()
    path = tmp_path / "cells" / cells[0].file
    with claimed(tmp_path) as folder:
        folder.begin(grid(), cells[:1])
        folder.write(cells[0], {})
    path.write_text(text, encoding="utf-8")
    before = contents(tmp_path)
    for call in (lambda: run_grid(grid(seeds=[0, 1]), tmp_path), lambda: read_records(tmp_path)):
        with pytest.raises(StorageError, match="another format.* stays as it is; use another --out") as caught:
            call()
        assert path.name in str(caught.value)
        assert contents(tmp_path) == before


def test_records_of_an_earlier_grid_stay_and_are_left_out(grid, tmp_path):
    before, after = grid(), grid(train={"epochs": 2, "batch_size": 16})
    with claimed(tmp_path) as folder:
        folder.begin(before, before.cells())
        for cell in before.cells():
            folder.write(cell, record(cell))
        folder.begin(after, after.cells())
        assert [folder.record_of(cell) for cell in after.cells()] == [None] * 4
    assert read_records(tmp_path) == []
    assert len(list((tmp_path / "cells").iterdir())) == 4


def test_nothing_is_half_written(grid, tmp_path, monkeypatch):
    cell = grid().cells()[0]
    with claimed(tmp_path) as folder:
        folder.begin(grid(), [cell])
        folder.write(cell, record(cell))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            folder.write(cell, record(cell, status="failed"))
        assert folder.record_of(cell) == record(cell)
        with pytest.raises(ValueError, match="JSON compliant"):
            folder.write(cell, record(cell, seconds=float("nan")))
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [cell.file]


def test_what_a_kill_left_is_swept_when_it_is_old(grid, tmp_path):
    with claimed(tmp_path) as folder:
        folder.store.put("kept", b"1")
        for name in (".old.1.partial", ".young.1.partial"):
            (tmp_path / "shared" / name).write_bytes(b"half")
        os.utime(tmp_path / "shared" / ".old.1.partial", (0, 0))
        folder.begin(grid(), [])
        assert {path.name for path in (tmp_path / "shared").iterdir()} == {"kept", ".young.1.partial"}
        assert folder.store.get("kept") == b"1"
        assert folder.store.get("gone") is None


def test_a_second_process_is_refused_and_a_killed_one_is_forgotten(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RunExistsError, match=rf"another process \(process {holder.pid}\) runs a grid there"):
                claimed(tmp_path).__enter__()
        finally:
            holder.kill()
    with claimed(tmp_path) as folder:
        assert folder.out == tmp_path


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(RunExistsError, match=r"holds other files \(thesis\.tex\) and no grid"):
        claimed(tmp_path).__enter__()
    assert contents(tmp_path) == before
    with pytest.raises(StorageError, match="it is a file"):
        claimed(tmp_path / "thesis.tex").__enter__()
    with pytest.raises(StorageError, match="holds no grid"):
        read_records(tmp_path)


@pytest.mark.parametrize("text", ['{"format": "antibackdoor grid 0"}', '{"cells": []}', "[]"])
def test_a_grid_of_another_format_is_left_alone(tmp_path, text):
    (tmp_path / "grid.json").write_text(text, encoding="utf-8")
    before = contents(tmp_path)
    for call in (lambda: claimed(tmp_path).__enter__(), lambda: read_records(tmp_path)):
        with pytest.raises(StorageError, match="is of another format"):
            call()
    assert contents(tmp_path) == before


def test_a_damaged_index_is_said_to_be(tmp_path):
    (tmp_path / "grid.json").write_text('{"format": ', encoding="utf-8")
    with pytest.raises(StorageError, match=r"grid\.json is damaged"):
        claimed(tmp_path).__enter__()


def test_a_file_of_ones_own_beside_a_grid_is_no_matter(grid, tmp_path):
    with claimed(tmp_path) as folder:
        folder.begin(grid(), [])
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with claimed(tmp_path):
        pass
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
