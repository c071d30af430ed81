"""What the tests of faults share: tiny data, a process to kill, a finished run to damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from end_to_end import FAST, invoke, write_npz
from killing import Command, Mortal, mortal, write_inputs


@pytest.fixture(scope="module")
def killable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mortal, dict[str, Command], Path]]:
    folder = tmp_path_factory.mktemp("faults")
    with mortal(folder) as run:
        yield run, write_inputs(folder), folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = invoke("train", write_npz(folder / "d.npz", 8), "--out", folder / "run", *FAST, "--quiet")
    assert done.code == 0, done
    return folder / "run"
