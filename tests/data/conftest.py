from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from antibackdoor.data.reader import Reader
from antibackdoor.data.sources import Loaded, load
from antibackdoor.progress import Silent


class Recorder(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def said() -> Recorder:
    return Recorder()


@pytest.fixture
def noise() -> Callable[..., NDArray[np.uint8]]:
    """uint8 of any shape, different for every seed."""

    def make(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def two_classes(tmp_path: Path, noise: Callable[..., NDArray[np.uint8]]) -> Path:
    """A folder of two classes, cat and dog, with three 10x12 RGB PNGs each."""
    root = tmp_path / "pets"
    for k, name in enumerate(("dog", "cat")):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(noise(12, 10, 3, seed=10 * k + i)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def read(cache_dir: Path, said: Recorder) -> Callable[..., Loaded]:
    """``load`` with a cache of its own and a recorder."""

    def run(source: str | Path, **settings: object) -> Loaded:
        return load(source, cache_dir=cache_dir, progress=said, **settings)  # type: ignore[arg-type]

    return run


@pytest.fixture
def reader(cache_dir: Path, said: Recorder) -> Reader:
    return Reader(None, False, cache_dir, said)
