"""Files that are no longer what was written: read, or an error of ours in one line that names the file; no traceback.

What once failed lies in ``corpus/READER/`` and is read every time; ``tests/fuzz/figures.py`` looks for more.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import fuzz, try_one
from readers import Reader, readers

CORPUS = Path(__file__).parent / "corpus"
NAMES = [
    *("run.json", "history.npz", "gallery.npz", "album.npz", "suspects.csv"),
    *("model.safetensors", "checkpoint", "checksums.sha256"),
    *("folder", "npz", "manifest", "decisions", "grid", "configuration", "record of a grid", "grid.json"),
]


@pytest.fixture(scope="module")
def known(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    found = readers(tmp_path_factory.mktemp("fuzz"), finished_run)
    assert list(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_few_changes(name: str, known: dict[str, Reader]) -> None:
    tried = fuzz(known[name], examples=10)
    assert tried.faults == []
    assert tried.read + tried.refused == tried.count >= 10


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_failed(path: Path, known: dict[str, Reader]) -> None:
    assert try_one(known[path.parent.name], path.read_bytes()) in ("read", "refused")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_changes_for_a_minute(name: str, known: dict[str, Reader]) -> None:
    tried = fuzz(known[name], seconds=60)
    assert tried.faults == []
