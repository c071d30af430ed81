"""Build the image file of the embedded set from the test files of Fashion-MNIST.

Usage: python scripts/build_embedded.py t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz

Writes src/antibackdoor/data/embedded/fashion_mnist.png: the 10,000 images one below the other, sorted by
class name and, within a class, in the order of the source, so that the place of an image gives its label. The
same input gives the same pixels always, and the same bytes under the same version of Pillow.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from antibackdoor.data.embedded import CLASSES, PER_CLASS, SIDE

TARGET = Path(__file__).resolve().parent.parent / "src/antibackdoor/data/embedded/fashion_mnist.png"
SOURCE_ORDER = (
    "t-shirt_top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle_boot",
)


def main(images_path: Path, labels_path: Path) -> None:
    """Read the two idx files, sort, check the counts and write the strip."""
    raw = gzip.decompress(images_path.read_bytes())
    _, count, rows, columns = struct.unpack(">IIII", raw[:16])
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(count, rows, columns)
    source_labels = np.frombuffer(gzip.decompress(labels_path.read_bytes()), np.uint8, offset=8)
    labels = np.array([CLASSES.index(name) for name in SOURCE_ORDER])[source_labels]
    if (rows, columns) != (SIDE, SIDE) or set(np.bincount(labels)) != {PER_CLASS}:
        sys.exit(f"expected {PER_CLASS} images of {SIDE}x{SIDE} in each class; is this the t10k file?")
    strip = images[np.argsort(labels, kind="stable")].reshape(-1, SIDE)
    Image.fromarray(strip).save(TARGET, optimize=True)
    digest = hashlib.sha256(strip.tobytes()).hexdigest()
    sys.stdout.write(f"{TARGET}: {TARGET.stat().st_size:,} bytes, sha256 of the pixels {digest}\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
