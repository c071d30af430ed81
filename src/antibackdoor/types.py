"""The frozen values that travel along the path of the data."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = [
    "Encoded",
    "Finding",
    "History",
    "ImageSet",
    "Isolation",
    "Json",
    "Metrics",
    "Outcome",
    "PoisonedSet",
    "RunRecord",
    "Verdict",
]

Json: TypeAlias = "str | int | float | bool | None | list[Json] | dict[str, Json]"
Verdict: TypeAlias = Literal["no sign of poison", "poisoned", "undecided"]


@dataclass(frozen=True)
class Finding:
    """What was found in one class, in figures; ``Isolation.evidence`` says it in words.

    Attributes:
        label: The class.
        status: "poisoned", "in doubt", or "nearest": it is not suspected, and no class comes nearer.
        kind: How the group of images was found, by the names of the defence.
        images: How many are in the group.
        p: Probability of as much in any class of a clean set, 0..1.
        statistics: By the names of the defence.
        source: The class that the images come from, where they come from one.
    """

    label: int
    status: Literal["poisoned", "in doubt", "nearest"]
    kind: str
    images: int
    p: float
    statistics: Mapping[str, float]
    source: int | None = None

    def to_json(self, classes: Sequence[str]) -> dict[str, Json]:
        """Return it with the names of the classes for their labels."""
        source = None if self.source is None else classes[self.source]
        return {**asdict(self), "label": classes[self.label], "source": source}


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images, as observed.

    Attributes:
        images: uint8 (N, C, H, W), C is 1 or 3; may be memory-mapped and must not be written to.
        labels: int64 (N,), each in 0..K-1.
        classes: The K class names, in label order.
        ids: N names, unique; for a folder the path of the image below it.
        name: What to call the set in messages.
        skipped: Files that were left out because they could not be read.
        white: The value that became 255, in files with 16 bits of grey.
        vouched: bool (N,), images that a person looked at and vouches for: a defence is to train on them and to flag
            none of them; None where nobody looked.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    name: str = "arrays"
    skipped: tuple[str, ...] = ()
    white: int = 65535
    vouched: Tensor | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        return f"ImageSet({self.name!r}, {len(self):,} images of {size}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        _, channels, height, width = self.images.shape
        return int(channels), int(height), int(width)

    def select(self, index: Tensor) -> ImageSet:
        """Return a copy that holds the rows ``index`` (int64 (M,)), in that order."""
        return dataclasses.replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            ids=tuple(self.ids[i] for i in index.tolist()),
            vouched=None if self.vouched is None else self.vouched[index],
        )

    def unvouched(self, mask: Tensor) -> Tensor:
        """Return ``mask``, bool (N,), without the images that a person vouches for."""
        return mask if self.vouched is None else mask & ~self.vouched


@dataclass(frozen=True, eq=False, repr=False)
class PoisonedSet:
    """What a trainer would see, and the truth that no defence is given.

    Attributes:
        observed: The images and labels as the victim receives them.
        poison: bool (N,), True where the row makes the backdoor.
        cover: bool (N,), True where the row carries the trigger with its true label; neither poison nor clean.
        original_labels: int64 (N,), the labels before poisoning.
        target: The one target class, or None where there are several.
        origin: int64 (N,), the row of the clean set that each image was made of, where some were added behind it or
            some left out; None where every image is at its own row.
    """

    observed: ImageSet
    poison: Tensor
    cover: Tensor
    original_labels: Tensor
    target: int | None
    origin: Tensor | None = None

    def __repr__(self) -> str:
        planted, covers = int(self.poison.sum()), int(self.cover.sum())
        with_covers = f", {covers:,} covers" if covers else ""
        return f"PoisonedSet({self.observed!r}, {planted:,} poison{with_covers}, target {self.target})"

    @property
    def made_of(self) -> Tensor:
        """int64 (N,), the row of the clean set that each image was made of."""
        import torch

        return torch.arange(len(self.poison)) if self.origin is None else self.origin


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """What one phase of training left behind.

    Attributes:
        phase: The name of the phase.
        losses: float32 (E, N), cross-entropy of every image in every epoch: as seen while training, before the
            update, for trained images; by a forward pass after the epoch for held-out ones; NaN for left-out ones.
        accuracy: float (E,), share of trained images predicted as labelled, as seen while training.
        seconds: float (E,), wall-clock time of each epoch.
        stopped: Why the phase ended before its last epoch, or None.
        held_out: bool (N,), images whose losses come from a forward pass; None where there are none.
        updates: Steps of the optimiser, over all epochs; 0 where nobody counted.
    """

    phase: str
    losses: NDArray[np.float32]
    accuracy: NDArray[np.float64]
    seconds: NDArray[np.float64]
    stopped: str | None = None
    held_out: NDArray[np.bool_] | None = None
    updates: int = 0

    def __repr__(self) -> str:
        epochs, count = self.losses.shape
        stopped = f", stopped: {self.stopped}" if self.stopped else ""
        took = f"{float(self.seconds.sum()):.1f} s{stopped}"
        return f"History({self.phase!r}, {epochs} epochs of {count:,} images, {took})"

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Bool (N,), the images that are not held out."""
        import numpy as np

        return np.ones(self.losses.shape[1], dtype=np.bool_) if self.held_out is None else ~self.held_out


@dataclass(frozen=True, eq=False, repr=False)
class Isolation:
    """Which images a defence suspects.

    Attributes:
        scores: float32 (N,), higher is more suspect.
        flagged: bool (N,).
        verdict: What the defence says about the whole set.
        evidence: The reasons in words, one sentence each.
        doubtful: Labels of the classes that are not above suspicion, though no image of them is flagged.
        findings: The reasons in figures, one a class, of the defences that have them.
    """

    scores: Tensor
    flagged: Tensor
    verdict: Verdict
    evidence: tuple[str, ...] = ()
    doubtful: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        return f"Isolation({self.verdict!r}, {int(self.flagged.sum()):,} of {len(self.flagged):,} images flagged)"

    def _repr_html_(self) -> str:
        counts = f"{int(self.flagged.sum()):,} of {len(self.flagged):,} images flagged"
        sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.evidence)
        return f"<div><p><strong>{html.escape(self.verdict)}</strong> · {counts}</p><ul>{sentences}</ul></div>"


@dataclass(frozen=True, eq=False, repr=False)
class Encoded:
    """What a frozen encoder sees in a set.

    Attributes:
        encoder: Its name.
        features: float32 (N, D).
        probe: float32 (P, D), of fixed pictures, which tell whether it is the same encoder another time.
    """

    encoder: str
    features: NDArray[np.float32]
    probe: NDArray[np.float32]

    def __repr__(self) -> str:
        return f"Encoded({self.encoder!r}, {len(self.features):,} images)"


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """What a defence returns.

    Attributes:
        model: The network to use, or None after a scan.
        isolation: Scores, flags and verdict.
        histories: One a phase, in the order they ran.
        encoded: What a public encoder sees in the set, where one was asked.
        described: What a record says of the data by this defence alone.
    """

    model: torch.nn.Module | None
    isolation: Isolation
    histories: tuple[History, ...]
    encoded: Encoded | None = None
    described: Mapping[str, Json] = field(default_factory=dict)

    def __repr__(self) -> str:
        network = "no network" if self.model is None else type(self.model).__name__
        return f"Outcome({network}, {self.isolation!r}, trainings: {len(self.histories)})"


@dataclass(frozen=True, repr=False)
class Metrics:
    """Every figure of a run, each with one definition (see ``ops.metrics``); fractions, None where not measurable.

    Attributes:
        ca: Clean accuracy on the whole clean test set, target class included.
        ca_target: Clean accuracy on the target class alone.
        asr: Attack success rate, over triggered test images of non-target classes, or of all where every class has a
            target of its own.
        ra: Robust accuracy: the same images predicted as their own class.
        holdout_accuracy: Accuracy on the held-out part of the training data, which may be poisoned too.
        precision: Share of the flagged images that are poison.
        recall: Share of the poison that is flagged.
        fpr: Share of the clean images that is flagged.
        auroc: Area under the ROC curve of the scores, poison against clean.
        auprc: Average precision of the scores, poison against clean.
        n_test: Images behind ca.
        n_test_target: Images behind ca_target.
        n_triggered: Images behind asr and ra.
        n_holdout: Images behind holdout_accuracy.
        n_poison: Poison images in the training data.
        n_cover: Cover images in the training data; counted neither as poison nor as clean.
        n_flagged: Images flagged.
        n_train: Images of the training data, held-out part included.
    """

    ca: float | None = None
    ca_target: float | None = None
    asr: float | None = None
    ra: float | None = None
    holdout_accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    fpr: float | None = None
    auroc: float | None = None
    auprc: float | None = None
    n_test: int | None = None
    n_test_target: int | None = None
    n_triggered: int | None = None
    n_holdout: int | None = None
    n_poison: int | None = None
    n_cover: int | None = None
    n_flagged: int | None = None
    n_train: int | None = None

    def __repr__(self) -> str:
        every = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        measured = ((name, value) for name, value in every if value is not None)
        shown = (f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in measured)
        return f"Metrics({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class RunRecord:
    """What is written to run.json.

    Attributes:
        config: The resolved configuration, every default filled in.
        seeds: The seed and the streams derived from it.
        versions: Of this package, Python and the libraries that compute.
        device: Where it ran, in which precision, and why.
        seconds: Wall-clock seconds of each phase.
        metrics: See :class:`Metrics`.
        verdict: See :class:`Isolation`; None where nothing was judged.
        evidence: See :class:`Isolation`.
        model: What is needed to rebuild the network for its weights.
        data: Counts, classes, image size and what was left out.
    """

    config: dict[str, Json]
    seeds: dict[str, Json]
    versions: dict[str, str]
    device: dict[str, Json]
    seconds: dict[str, float]
    metrics: Metrics
    verdict: Verdict | None
    evidence: tuple[str, ...] = ()
    model: Mapping[str, Json] = field(default_factory=dict)
    data: Mapping[str, Json] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"RunRecord({self.verdict!r}, {self.metrics!r}, {sum(self.seconds.values()):.1f} s)"
