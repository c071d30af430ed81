"""Fixtures of every suite: a synthetic image set, a tiny network, a float32 CPU runtime, a cache of its own."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from end_to_end import FAST, invoke, write_npz
from torch import Tensor, nn

from antibackdoor.models import BuildModel, builder_from
from antibackdoor.training import Runtime, TrainPlan
from antibackdoor.types import ImageSet

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # Made here and not by pytest, which lists all folders there are for each that it makes.
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_cache(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = next(_caches)
    cache.mkdir()
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(cache))


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32, "float32, for tests", compile_mode="off")


def make_blobs(
    count: int = 100,
    classes: int = 10,
    *,
    channels: int = 3,
    height: int = 28,
    width: int = 28,
    noise: float = 20.0,
    seed: int = 0,
) -> ImageSet:
    """A bright blob whose place on a ring tells the class, on grey noise; labels go round in order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    angle = 2 * math.pi * labels / classes
    centre_y = (0.5 + 0.3 * torch.sin(angle)) * height
    centre_x = (0.5 + 0.3 * torch.cos(angle)) * width
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    distance = ((rows - centre_y[:, None, None]) / height) ** 2 + ((columns - centre_x[:, None, None]) / width) ** 2
    blob = 150 * torch.exp(-distance / 0.01)
    pixels = 50 + blob[:, None] + noise * torch.randn((count, channels, height, width), generator=generator)
    return ImageSet(
        images=pixels.round().clamp(0, 255).to(torch.uint8),
        labels=labels,
        classes=tuple(f"c{i:02d}" for i in range(classes)),
        ids=tuple(f"blobs/{i:05d}" for i in range(count)),
        name="blobs",
    )


@pytest.fixture(scope="session")
def blobs() -> Callable[..., ImageSet]:
    """Makes image sets; see ``make_blobs``."""
    return make_blobs


class TinyNet(nn.Module):
    """Two convolutions with batch normalisation, dropout and a linear head: everything that has a state to lose."""

    def __init__(self, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(256, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., BuildModel]:
    """Gives the builder of tiny networks for an image set: ``tiny(data)(generator)``."""

    def make(data: ImageSet, dropout: float = 0.0) -> BuildModel:
        build, _ = builder_from(lambda: TinyNet(data.shape[0], data.num_classes, dropout), data)
        return build

    return make


@pytest.fixture
def plan() -> TrainPlan:
    """Three short epochs at a constant rate, no augmentation."""
    return TrainPlan(epochs=3, batch_size=16, lr=0.05, weight_decay=0.0, schedule="constant", augment=())


@pytest.fixture
def checkpoint_dir(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def make_trajectories(
    labels: Tensor, planted: Tensor, *, epochs: int = 20, learned_at: int = 4, seed: int = 0
) -> Tensor:
    """Losses (E, N): clean images are learned slowly, each at its own pace; planted ones all at once in one epoch."""
    generator = torch.Generator().manual_seed(seed)
    pace = 0.15 * torch.randn(len(labels), generator=generator)
    noise = 0.2 * torch.randn((epochs, len(labels)), generator=generator)
    steps = torch.arange(epochs)[:, None] / epochs
    at_once = -6.0 * (torch.arange(epochs)[:, None] >= learned_at) + 0.5 * pace
    logs = torch.where(planted, at_once, -3.0 * steps * pace.exp() + pace) + noise
    return (0.5 + logs).exp().float()


@pytest.fixture
def trajectories() -> Callable[..., Tensor]:
    """Makes losses of whole trainings; see ``make_trajectories``."""
    return make_trajectories


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied and not changed."""
    folder = tmp_path_factory.mktemp("finished")
    done = invoke("train", write_npz(folder / "d.npz", 8), "--out", folder / "run", *FAST, "--quiet")
    assert done.code == 0, done
    return folder / "run"
