"""A finished run of a small folder, some of whose images carry a white corner, and its board."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import CLASSES, write_folder
from PIL import Image

from antibackdoor import serialising, storage
from antibackdoor.config import RunConfig
from antibackdoor.data.sources import load
from antibackdoor.review.board import Board
from antibackdoor.review.server import open_board
from antibackdoor.types import History, ImageSet, Isolation, Metrics, RunRecord, Verdict

PER_CLASS, SUSPECTS = 60, 24


def write_run(
    out: Path, config: RunConfig, data: ImageSet, flagged: torch.Tensor, doubtful: tuple[int, ...] = ()
) -> Path:
    """Write the folder of a run that flagged these images, as a defence that took no time would."""
    count = len(data)
    verdict: Verdict = "undecided" if doubtful else "poisoned"
    scores = flagged.float() * 5 + torch.linspace(1, 0, count)
    held = data.labels[flagged].unique().tolist()
    record = RunRecord(
        config=config.dump(),
        seeds={"seed": 0},
        versions={},
        device={},
        seconds={},
        metrics=Metrics(),
        verdict=verdict,
        evidence=tuple(f"Class {data.classes[label]!r} is poisoned: <a mark>." for label in held),
        data={"name": data.name, "classes": list(data.classes)},
    )
    losses = np.zeros((1, count), np.float32)
    out.mkdir()
    serialising.write_json(out / storage.CONFIG, config.dump())
    storage.save_run(
        out,
        record=record,
        model=None,
        data=data,
        isolation=Isolation(scores, flagged, verdict, doubtful=doubtful),
        histories=(History("ordinary", losses, np.zeros(1), np.zeros(1)),),
        truth=None,
        seen=torch.where(flagged, (data.labels + 1) % data.num_classes, data.labels),
    )
    return out


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The folder: three classes, the first images of "cat" with a white corner."""
    folder = write_folder(tmp_path / "pets", PER_CLASS)
    for path in sorted((folder / CLASSES[0]).iterdir())[:SUSPECTS]:
        pixels = np.array(Image.open(path))
        pixels[-3:, -3:] = 255
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Path:
    """The run: the marked images are flagged."""
    data = load(images).train
    flagged = torch.zeros(len(data), dtype=torch.bool)
    flagged[:SUSPECTS] = True
    return write_run(tmp_path / "run", RunConfig.parse({"data": {"source": str(images)}}), data, flagged)


@pytest.fixture
def board(run: Path) -> Board:
    return open_board(run, who="tester", near=30)


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """Writes runs; see ``write_run``."""
    return write_run
