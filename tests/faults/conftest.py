"""What the tests of faults share: tiny data, a process to kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import Command, Mortal, mortal, write_inputs


@pytest.fixture(scope="session")
def killable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mortal, dict[str, Command], Path]]:
    folder = tmp_path_factory.mktemp("faults")
    with mortal(folder) as run:
        yield run, write_inputs(folder), folder
