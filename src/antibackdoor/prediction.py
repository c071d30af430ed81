"""A finished run at work: predictions for files, figures on folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from antibackdoor import storage
from antibackdoor.csvs import as_text, lines_of
from antibackdoor.data.apart import decode
from antibackdoor.data.arrays import with_classes
from antibackdoor.data.cache import default_cache_dir
from antibackdoor.data.decode import WHITE, BadImageError
from antibackdoor.data.folder import scan
from antibackdoor.data.formats import EXTENSIONS
from antibackdoor.data.reader import Reader
from antibackdoor.data.walk import Left, images_below
from antibackdoor.errors import DataError, StorageError
from antibackdoor.evaluation import evaluate
from antibackdoor.progress import SILENT, Progress
from antibackdoor.training import Runtime, logits_of
from antibackdoor.types import ImageSet, Metrics, PoisonedSet, RunRecord

__all__ = ["Prediction", "evaluate_run", "find_images", "predict", "predictions_csv"]

_CHUNK = 512


@dataclass(frozen=True)
class Prediction:
    """One readable image.

    Attributes:
        path: As given, or below the folder that was given.
        predicted: Class name.
        probability: Of that class, 0..1.
    """

    path: str
    predicted: str
    probability: float


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the files named, and those with an image's extension below the folders named, in order.

    Raises:
        DataError: A path that does not exist, or no image anywhere.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path / name for name in images_below(path, ".", Left()))
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"no such file or folder: {path}")
    if not found:
        raise DataError(f"no images in {', '.join(map(str, paths))}: looked for {', '.join(EXTENSIONS)}")
    return found


def predict(
    run: Path, paths: Sequence[Path], *, device: str = "auto", progress: Progress = SILENT
) -> tuple[list[Prediction], list[str]]:
    """Classify image files with the network of a run.

    Args:
        run: A finished run folder.
        paths: Files, or folders to read recursively.
        device: As in training.
        progress: Shows the work.

    Returns:
        One prediction a readable image, in order, and "path: reason" of those that could not be read.

    Raises:
        StorageError: No finished run, no network in it, or one whose answers are infinite or not a number.
        DataError: A path that does not exist, or no readable image.
    """
    record = storage.read_record(run)
    model, classes = _network(run, record), _classes(record)
    channels, height, width = _shape(record)
    read = partial(decode, channels=channels, height=height, width=width, white=_white(record))
    runtime = Runtime.create(device)
    runtime.place(model)
    files = find_images(paths)
    predictions: list[Prediction] = []
    unreadable: list[str] = []
    with progress.bar("predicting", len(files), "images") as bar:
        for start in range(0, len(files), _CHUNK):
            images, names = [], []
            for file in files[start : start + _CHUNK]:
                try:
                    images.append(torch.from_numpy(read(file)))
                    names.append(str(file))
                except BadImageError as error:
                    unreadable.append(f"{file}: {error}")
                bar.advance()
            if images:
                predictions += _classify(model, torch.stack(images), names, classes, runtime)
    if not predictions:
        raise DataError(f"none of the {len(files)} files can be read as an image; first: {unreadable[0]}")
    return predictions, unreadable


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """Return the predictions as CSV with the columns ``path,predicted,probability``."""
    rows = [(as_text(item.path), as_text(item.predicted), f"{item.probability:.6f}") for item in predictions]
    return lines_of([("path", "predicted", "probability"), *rows])


def evaluate_run(
    run: Path,
    *,
    clean: Path | None,
    triggered: Path | None = None,
    target: int | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Metrics:
    """Measure the network of a run on folders.

    Args:
        run: A finished run folder.
        clean: Clean test images, one subfolder a class.
        triggered: Triggered test images, one subfolder for each *original* class; images of the target are left out.
        target: The class that triggered images are to be predicted as by a backdoored network.
        device: As in training.
        progress: Shows the work.

    Raises:
        StorageError: No finished run, no network in it, or one whose answers are infinite or not a number.
        DataError: A folder that cannot be used, or with classes the run does not know.
    """
    record = storage.read_record(run)
    model, classes = _network(run, record), _classes(record)
    runtime = Runtime.create(device)
    runtime.place(model)
    reader = Reader(None, False, default_cache_dir(), progress)
    nothing = torch.zeros(0, dtype=torch.int64)
    seen = ImageSet(torch.zeros((0, *_shape(record)), dtype=torch.uint8), nothing, classes, (), white=_white(record))

    def read(folder: Path) -> ImageSet:
        return with_classes(reader.read(scan(folder, say=progress.say), like=seen), classes)

    truth = None
    if triggered is not None and target is not None:
        images = read(triggered)
        kept = images.select((images.labels != target).nonzero().squeeze(1))
        if not len(kept):
            raise DataError(f"{triggered}: all images are of the target class {classes[target]!r}; nothing to measure")
        aimed = ImageSet(kept.images, torch.full_like(kept.labels, target), classes, kept.ids, kept.name)
        everything = torch.ones(len(kept), dtype=torch.bool)
        truth = PoisonedSet(aimed, everything, ~everything, kept.labels, target)
    test = read(clean) if clean is not None else None
    return evaluate(model, runtime, test=test, triggered=truth, target=target)


def _network(run: Path, record: RunRecord) -> nn.Module:
    """Load the network of a run; what it answers is checked, since finite weights may overflow, too."""

    def check(module: nn.Module, given: object, logits: torch.Tensor) -> None:
        if not bool(logits.isfinite().all()):
            raise StorageError(
                f"the network of {run} answers these images with what is infinite or not a number; train it again"
            )

    model = storage.load_model(run, record)
    model.register_forward_hook(check)
    return model


def _classify(
    model: nn.Module, images: torch.Tensor, names: Sequence[str], classes: tuple[str, ...], runtime: Runtime
) -> list[Prediction]:
    labels = torch.zeros(len(images), dtype=torch.int64)
    data = ImageSet(images, labels, classes, tuple(names))
    best = logits_of(model, data, runtime).softmax(1).max(1)
    return [
        Prediction(name, classes[label], probability)
        for name, label, probability in zip(names, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _classes(record: RunRecord) -> tuple[str, ...]:
    return tuple(str(name) for name in record.data["classes"])  # type: ignore[union-attr]


def _shape(record: RunRecord) -> tuple[int, int, int]:
    return int(record.data["channels"]), int(record.data["height"]), int(record.data["width"])  # type: ignore[arg-type]


def _white(record: RunRecord) -> int:
    return int(record.data.get("white", WHITE))  # type: ignore[arg-type]  # runs of before have none
