"""What a run folder says about one run, checked to be what a run can say and to fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from antibackdoor.errors import StorageError
from antibackdoor.types import Metrics, RunRecord, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from antibackdoor.types import Json

__all__ = ["StoredRun", "check_arrays", "class_verdicts", "record_of"]

_SECTIONS = ("config", "seeds", "versions", "device", "seconds", "model", "data")
_COUNTS = ("channels", "height", "width", "white")
_TYPES = {
    **{"labels": "int64", "scores": "float32", "flagged": "bool", "losses": "float32", "ids": "uint8"},
    **{"poison": "bool", "cover": "bool", "content": "uint8", "doubtful": "int64", "index": "int64", "images": "uint8"},
}


def record_of(values: Mapping[str, Json]) -> RunRecord:
    """Return the record that run.json holds.

    Args:
        values: What is in the file, its format left out.

    Raises:
        TypeError: A value is missing, or not one that a run can have; the message says which.
    """
    found: dict[str, Any] = dict(values)
    for name in _SECTIONS:
        _require(isinstance(found.get(name, {}), dict), f"{name} holds no settings by name")
    metrics, evidence, data = found.pop("metrics", None), found.pop("evidence", None), found.get("data", {})
    _require(isinstance(metrics, dict) and all(map(_is_figure, metrics.values())), "metrics are no figures")
    _require(_are_names(evidence), "evidence is no list of sentences")
    _require(all(value is not None and _is_figure(value) for value in found.get("seconds", {}).values()), "seconds")
    _require(all(isinstance(value, str) for value in found.get("versions", {}).values()), "versions are no text")
    _require(found.get("verdict") in (None, *get_args(Verdict)), "there is no such verdict")
    _require(all(_are_names(data[name]) for name in ("classes", "skipped") if name in data), "names of data")
    _require(all(type(data[name]) is int and data[name] > 0 for name in _COUNTS if name in data), "sizes of data")
    return RunRecord(metrics=Metrics(**metrics), evidence=tuple(evidence), **found)


def check_arrays(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Check that arrays of a run are of the types that a run has.

    Raises:
        TypeError: One is not; the message says which.
    """
    for name, array in arrays.items():
        wanted = _TYPES.get(name)
        _require(wanted is None or array.dtype == wanted, f"{name} is of type {array.dtype}, expected {wanted}")
    phases = arrays.get("phases")
    _require(phases is None or (phases.ndim == 1 and phases.dtype.kind == "U"), "phases are no names")
    _require("doubtful" not in arrays or arrays["doubtful"].ndim == 1, "doubtful is no list")


def _require(met: bool, fault: str) -> None:
    if not met:
        raise TypeError(fault)


def _is_figure(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def class_verdicts(
    labels: NDArray[np.int64],
    flagged: NDArray[np.bool_],
    num_classes: int,
    verdict: Verdict | None,
    doubtful: Sequence[int] = (),
) -> list[Verdict]:
    """Return what the verdict on a set says of each of its K classes.

    Args:
        labels: int64 (N,), each in 0..K-1.
        flagged: bool (N,).
        num_classes: K.
        verdict: On the whole set; None where nothing was judged.
        doubtful: Labels of classes that are not above suspicion.

    Returns:
        "poisoned" for a class that holds flagged images of a poisoned set; "undecided" where the class is not above
        suspicion, and for all classes of an undecided set if none is named as such; else "no sign of poison".
    """
    held = np.bincount(labels[flagged], minlength=num_classes) > 0
    of_held: Verdict = "poisoned" if verdict == "poisoned" else "undecided"
    judged = verdict in ("poisoned", "no sign of poison") or bool(doubtful)
    of_rest: Verdict = "no sign of poison" if judged else "undecided"
    return [of_held if held[k] else "undecided" if k in doubtful else of_rest for k in range(num_classes)]


@dataclass(frozen=True, eq=False)
class StoredRun:
    """One run, as its folder holds it.

    From ``record`` the page takes the names ``data["name"]``, ``config["defence"]`` and ``model["name"]``
    (else ``config["model"]``; each a string, or a mapping with the key ``name``), ``seeds["seed"]`` (else
    ``config["seed"]``), and the files left out, ``data["skipped"]`` (a list of paths, or their number).
    What is not there is left out.

    Attributes:
        record: What run.json holds.
        ids: N names of the training images, mostly paths.
        labels: int64 (N,), each in 0..K-1.
        classes: The K class names, in label order.
        scores: float32 (N,), higher is more suspect; NaN where an image has no score.
        flagged: bool (N,).
        losses: float32 (E, N), in nats; NaN where an image was left out of an epoch.
        phases: E names, the phase of each epoch.
        poison: bool (N,), the truth, known in experiments only.
        cover: bool (N,), rows that carry the trigger with their true label; None where there are none or
            the truth is not known.
        gallery_index: int64 (G,), rows of the images to show, most suspect first.
        gallery: uint8 (G, H, W, C), their pixels; C is 1 or 3.
        content: uint8 (N, 32), SHA-256 of the pixels of every image; None in runs of before they were kept.
        doubtful: Labels of the classes that are not above suspicion, though no image of them is flagged.
        seen: int64 (N,), the class that the network of the run sees in each image: of a scan, the network that looked;
            None where there is none, and in runs of before it was kept.

    Raises:
        StorageError: The parts do not fit together, as from a damaged or mixed-up run folder.
    """

    record: RunRecord
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    scores: NDArray[np.float32]
    flagged: NDArray[np.bool_]
    losses: NDArray[np.float32]
    phases: tuple[str, ...]
    poison: NDArray[np.bool_] | None
    cover: NDArray[np.bool_] | None
    gallery_index: NDArray[np.int64]
    gallery: NDArray[np.uint8]
    content: NDArray[np.uint8] | None = None
    doubtful: tuple[int, ...] = ()
    seen: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        rows = len(self.ids)
        for name in ("labels", "scores", "flagged", "poison", "cover", "seen"):
            values = getattr(self, name)
            if values is not None and values.shape != (rows,):
                raise StorageError(f"report: {name} has shape {values.shape}, expected ({rows},) as there are ids")
        if self.content is not None and self.content.shape != (rows, 32):
            raise StorageError(f"report: content has shape {self.content.shape}, expected ({rows}, 32), one hash an id")
        if self.losses.shape != (len(self.phases), rows):
            expected = (len(self.phases), rows)
            raise StorageError(f"report: losses has shape {self.losses.shape}, expected {expected} (epochs, images)")
        self._check_range("labels", self.labels, len(self.classes))
        if self.seen is not None:
            self._check_range("seen", self.seen, len(self.classes))
        self._check_range("gallery_index", self.gallery_index, rows)
        self._check_range("doubtful", np.array(self.doubtful, dtype=np.int64), len(self.classes))
        shape = self.gallery.shape
        if self.gallery_index.ndim != 1 or len(shape) != 4 or shape[0] != len(self.gallery_index):
            raise StorageError(
                f"report: gallery has shape {shape}, expected (G, H, W, C), one row an index "
                f"of gallery_index {self.gallery_index.shape}"
            )
        if shape[0] and (shape[3] not in (1, 3) or 0 in shape):
            raise StorageError(f"report: gallery has shape {shape}, expected pixels of 1 or 3 channels")

    def _check_range(self, name: str, values: NDArray[np.int64], bound: int) -> None:
        if values.size and (values.min() < 0 or values.max() >= bound):
            raise StorageError(f"report: {name} spans {values.min()}..{values.max()}, expected 0..{bound - 1}")

    @cached_property
    def covered(self) -> NDArray[np.bool_]:
        """Bool (N,), ``cover`` with None read as no cover images."""
        return np.zeros(len(self.ids), dtype=np.bool_) if self.cover is None else self.cover

    @cached_property
    def class_verdicts(self) -> list[Verdict]:
        """K words; see :func:`class_verdicts`."""
        return class_verdicts(self.labels, self.flagged, len(self.classes), self.record.verdict, self.doubtful)

    @cached_property
    def findings(self) -> dict[int, str]:
        """By label, the sentence of the evidence that says what was found in that class; others are not there."""
        found = {}
        for label, name in enumerate(self.classes):
            begins = f"Class {name!r} is "
            sentence = next((one for one in self.record.evidence if one.startswith(begins)), None)
            if sentence is not None:
                found[label] = sentence
        return found

    @cached_property
    def scored(self) -> NDArray[np.bool_]:
        """Bool (N,), True where the score is a finite number."""
        return np.isfinite(self.scores)

    @cached_property
    def threshold(self) -> float | None:
        """The lowest flagged score, if no kept image scores higher than it, else None."""
        flagged = self.scores[self.flagged & self.scored]
        kept = self.scores[~self.flagged & self.scored]
        if flagged.size == 0 or kept.size == 0 or flagged.min() < kept.max():
            return None
        return float(flagged.min())
