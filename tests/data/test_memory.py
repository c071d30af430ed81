"""Reading a set takes the memory of what is being decoded, whatever the number of images."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE, FEW = 128, 150
# Pixels of the smaller set, decoded: 7 MiB; of the larger one 28 MiB, which would show if it were held.
DECODED = FEW * SIDE * SIDE * 3
PROGRAM = """
import resource, sys
from antibackdoor.data.sources import load
found = load(sys.argv[1]).train
assert found.images.shape[0] == int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_tar(path: Path, count: int) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    picture, label = path.with_suffix(".png"), path.with_suffix(".cls")
    with tarfile.open(path, "w") as tar:
        for row in range(count):
            Image.fromarray(np.roll(noise, row, axis=1)).save(picture, compress_level=1)
            label.write_text("cat" if row % 2 else "dog")
            tar.add(picture, f"{row:05d}.png")
            tar.add(label, f"{row:05d}.cls")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_four_times_the_images_take_no_more_memory_to_read(tmp_path):
    peaks = []
    for count in (FEW, 4 * FEW):
        source = write_tar(tmp_path / f"{count}.tar", count)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, source, str(count)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < DECODED, f"{peaks}: {3 * DECODED:,} bytes more are decoded"
