"""What the end-to-end tests share: tiny data on disk, and the command called in this process."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from antibackdoor.cli import main
from antibackdoor.files import read_checksums, write_checksums

CLASSES = ("cat", "dog", "owl")
SIDE = 12
# One epoch of everything on the smallest network; batches of 16 so that the learning rate has steps to act in.
FAST = (
    *("--device", "cpu", "--model", "wrn-10-1", "--epochs", "1", "--defence", "abl-modified"),
    *("--set", "train.batch_size=16", "--set", "defence.isolation_epochs=1", "--set", "defence.unlearn_epochs=1"),
)


@dataclass(frozen=True)
class Finished:
    """One call of the command."""

    code: int
    out: str
    err: str


def invoke(*args: object) -> Finished:
    """Call the command as a shell would, without the price of a process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["antibackdoor", *map(str, args)]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
    assert isinstance(code, int), f"sys.exit({code!r}) prints its argument and exits with 1"
    return Finished(code, out.getvalue(), err.getvalue())


def assert_refused(done: Finished, *named: str) -> None:
    """What every bad input gets: exit code 2, one line on standard error that names the thing, no traceback."""
    assert done.code == 2, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("antibackdoor: ")
    assert "Traceback" not in done.err
    assert "fault of ours" not in done.err
    for text in named:
        assert text in lines[0], f"{text!r} is not in {lines[0]!r}"


def pictures(count: int, classes: int = 3, *, side: int = SIDE, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 (count, side, side, channels): noise, with a bright column that tells the class ``row % classes``."""
    noise = np.random.default_rng(seed).integers(0, 90, (count, side, side, channels), dtype=np.uint8)
    for row in range(count):
        start = (row % classes) * side // classes
        noise[row, :, start : start + 2] = 220
    return noise


def write_folder(root: Path, per_class: int = 20, classes: Sequence[str] = CLASSES, seed: int = 0) -> Path:
    """Write PNG files, one subfolder a class."""
    images = pictures(per_class * len(classes), len(classes), seed=seed)
    for row, image in enumerate(images):
        folder = root / classes[row % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row // len(classes):03d}.png")
    return root


def write_npz(path: Path, per_class: int = 20, classes: int = 3, seed: int = 0) -> Path:
    """Write images and labels."""
    count = per_class * classes
    np.savez(path, images=pictures(count, classes, seed=seed), labels=np.arange(count) % classes)
    return path


def write_poisoned_npz(path: Path, per_class: int = 60, classes: int = 3, poisoned: int = 18, seed: int = 0) -> Path:
    """Write images of which the last ``poisoned`` ones carry a white corner and label 0."""
    count = per_class * classes
    images, labels = pictures(count, classes, seed=seed), np.arange(count) % classes
    images[-poisoned:, -3:, -3:] = 255
    labels[-poisoned:] = 0
    np.savez(path, images=images, labels=labels)
    return path


def write_vast_png(path: Path, side: int = 30_000) -> Path:
    """Write a whole, valid one-bit PNG of side x side pixels, which takes about 100 kB."""
    rows = zlib.compressobj(1)
    line = bytes(1 + (side + 7) // 8) * 100
    pixels = b"".join(rows.compress(line) for _ in range(side // 100)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", zlib.crc32(kind + content)))
    return path


def reseal(run: Path) -> None:
    """Write the checksums of a run anew, as someone who changes its files on purpose can."""
    names = read_checksums(run) or {}
    write_checksums(run, {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names})


class SmallNet(nn.Module):
    """A network of the user's own, with batch normalisation and a head called so."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
