"""What is observed of a set before it is judged: how a small network learns it, and what an encoder sees in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.defences.encoding import features_by
from antibackdoor.defences.witnesses.style import styles_of
from antibackdoor.models import BuildModel, Resized, builder_from, size_within
from antibackdoor.models.encoders import Encoder
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, Runtime, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet

__all__ = ["Seen", "detector_for", "detector_plan", "log_losses", "observe", "train_in_parts"]

# The detector: the network of the bank of evidence, on pictures of at most this side. It is trained without
# augmentation, which blurs what marks poison (docs/log.md), for so many epochs of at least so many updates together.
DETECTOR, SIDE, EPOCHS, UPDATES = "wrn-10-1", 64, 20, 1500
_SMALLEST_BATCH, _LARGEST_BATCH = 32, 128
_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Seen:
    """Everything that the evidence is taken from.

    Attributes:
        data: The set, N images of K classes.
        network: The network that learned the set, poison included, in evaluation mode.
        runtime: Where it computes.
        trajectories: float64 (E, N), logarithm of the loss of every image by a forward pass after each of E epochs.
        features: float32 (N, D) of the encoder, or of the network's own penultimate layer where there is no encoder.
        styles: float32 (N, S), how images are made (``style.styles_of``).
        witness: Name of the encoder, or "none".
        trained: bool (N,), images that the network was trained on; the others are held out.
    """

    data: ImageSet
    network: nn.Module
    runtime: Runtime
    trajectories: NDArray[np.float64]
    features: NDArray[np.float32]
    styles: NDArray[np.float32] = field(repr=False)
    witness: str
    trained: NDArray[np.bool_] = field(repr=False)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (N,), as observed."""
        found: NDArray[np.int64] = self.data.labels.numpy()
        return found

    @property
    def open(self) -> NDArray[np.bool_]:
        """Bool (N,), images that nobody vouches for."""
        found: NDArray[np.bool_] = self.data.unvouched(torch.ones(len(self.data), dtype=torch.bool)).numpy()
        return found

    def at(self, rows: NDArray[np.int64]) -> Seen:
        """Return what was seen of some images, int64 (n,)."""
        return replace(
            self,
            data=self.data.select(torch.from_numpy(rows)),
            trajectories=self.trajectories[:, rows],
            features=self.features[rows],
            styles=self.styles[rows],
            trained=self.trained[rows],
        )


def detector_plan(count: int) -> TrainPlan:
    """Return the plan of the detector's training on ``count`` images."""
    batch = min(_LARGEST_BATCH, max(_SMALLEST_BATCH, EPOCHS * count // UPDATES))
    return TrainPlan(epochs=EPOCHS, batch_size=batch, augment=())


def detector_for(data: ImageSet) -> BuildModel:
    """Return the builder of the detector; of images larger than 64 pixels it sees smaller pictures."""
    build, _ = builder_from(DETECTOR, data)
    _, height, width = data.shape
    size = size_within(height, width, SIDE)
    return build if size is None else lambda generator: Resized(build(generator), *size)


def train_in_parts(
    model: nn.Module,
    data: ImageSet,
    plan: TrainPlan,
    ends: Sequence[int],
    *,
    fit: Fit,
    name: str,
    subset: Tensor | None = None,
) -> Iterator[tuple[int, History]]:
    """Train, stopping for the caller after each of these epochs.

    Args:
        model: Trained in place, to the bits of one uninterrupted phase called ``name``.
        data: The set.
        plan: Of the training.
        ends: Epochs, rising.
        fit: The training loop.
        name: Of the phases.
        subset: bool (N,), rows to train on; all by default.

    Yields:
        The epoch, and the history of the part that ended with it.
    """
    for first, last in itertools.pairwise((0, *ends)):
        phase = Phase(f"{name} {last}", plan, first=first, last=last, part_of=name)
        yield last, fit(model, data, phase, subset=subset)


def log_losses(model: nn.Module, data: ImageSet, runtime: Runtime) -> NDArray[np.float64]:
    """Return the logarithm of the loss of every image, float64 (N,), by a forward pass without augmentation."""
    losses = ce(logits_of(model, data, runtime), data.labels)
    found: NDArray[np.float64] = losses.clamp_min(_FLOOR).log().double().numpy()
    return found


def observe(data: ImageSet, encoder: Encoder | None, *, fit: Fit, seeds: Seeds) -> tuple[Seen, list[History]]:
    """Train the detector and ask the encoder.

    Args:
        data: The set.
        encoder: The second witness; None does without.
        fit: The training loop.
        seeds: The run's streams.
    """
    model = detector_for(data)(seeds.child("detector").generator("init"))
    plan = detector_plan(len(data))
    histories, logs = [], []
    for _, history in train_in_parts(model, data, plan, range(1, plan.epochs + 1), fit=fit, name="detector"):
        histories.append(history)
        logs.append(log_losses(model, data, fit.runtime))
    features = features_by(encoder, model, data, fit.runtime)
    witness = "none" if encoder is None else encoder.name
    styles = styles_of(data.images)
    return Seen(data, model, fit.runtime, np.stack(logs), features, styles, witness, histories[0].trained), histories
