"""The rows of the page's tables, and how it writes numbers: a share never without what it is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from antibackdoor.stored import StoredRun
    from antibackdoor.types import Metrics, RunRecord

__all__ = [
    "ClassRow",
    "ComparedRow",
    "FindingRow",
    "GroupRow",
    "MetricRow",
    "class_rows",
    "compared_rows",
    "counts",
    "duration",
    "finding_rows",
    "group_rows",
    "grouped",
    "in_doubt",
    "metric_rows",
    "number",
    "percent",
]

T = TypeVar("T")


@dataclass(frozen=True)
class GroupRow:
    """One line of the table of groups, such as contributors."""

    name: str
    images: int
    flagged: int
    expected: float
    corrected: float
    stands_out: bool
    counted: str = "flagged"


def group_rows(record: RunRecord) -> tuple[str, int, list[GroupRow]]:
    """Return by what images were grouped, in how many groups, and those that stand out most; nothing is "", 0, []."""
    found: Any = record.data.get("groups")
    try:
        rows = [
            GroupRow(
                name=str(group["name"]),
                images=int(group["images"]),
                flagged=int(group["flagged"]),
                expected=float(group["expected"]),
                corrected=float(group["corrected"]),
                stands_out=bool(group["stands_out"]),
                counted=str(group.get("counted", "flagged")),
            )
            for group in found["groups"]
        ]
        return str(found["column"]), int(found["count"]), rows
    except (KeyError, TypeError, ValueError, OverflowError):  # no groups, or a record that was changed by hand
        return "", 0, []


@dataclass(frozen=True)
class ComparedRow:
    """One question about one class of a batch that was compared with an earlier set."""

    label: str
    question: str
    p: float
    corrected: float
    named: int


def compared_rows(record: RunRecord) -> list[ComparedRow]:
    """Return what was asked of a batch beside an earlier set, the smallest p first; nothing where none was compared."""
    return _read(
        record,
        "compared",
        lambda row: ComparedRow(
            label=str(row["label"]),
            question=str(row["question"]),
            p=float(row["p"]),
            corrected=float(row["corrected"]),
            named=int(row["named"]),
        ),
    )


@dataclass(frozen=True)
class FindingRow:
    """What was found in one class, in figures."""

    label: str
    status: str
    images: int
    p: float
    statistics: str


def finding_rows(record: RunRecord) -> list[FindingRow]:
    """Return what was found by class, as the record has it; nothing where it has none."""
    return _read(
        record,
        "findings",
        lambda row: FindingRow(
            label=str(row["label"]),
            status=str(row["status"]),
            images=int(row["images"]),
            p=float(row["p"]),
            statistics=", ".join(f"{name} {float(value):.2f}" for name, value in row["statistics"].items()),
        ),
    )


def _read(record: RunRecord, key: str, row: Callable[[Any], T]) -> list[T]:
    """Return a row for each of what a record lists; none where it lists nothing, or was changed by hand."""
    found: Any = record.data.get(key)
    try:
        return [row(one) for one in found or ()]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return []


@dataclass(frozen=True)
class MetricRow:
    """One line of the table of figures."""

    name: str
    value: str
    of: str
    meaning: str


@dataclass(frozen=True)
class ClassRow:
    """One line of the table of classes."""

    name: str
    images: int
    flagged: int
    share: float
    poison: int
    cover: int
    doubtful: bool


def percent(share: float) -> str:
    """Return "86.1 %"; what is not quite none or all is never rounded to it."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def grouped(value: int, noun: str = "", plural: str = "") -> str:
    """Return "2,000 images"."""
    if not noun:
        return f"{value:,}"
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return "12.3 s", "6 min 53 s" or "2 h 4 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def number(value: float) -> str:
    """Return four digits, trailing zeros kept so that they line up; "none" for what is no number."""
    return f"{value:#.4g}".rstrip(".").replace("-", "−") if np.isfinite(value) else "none"


def counts(view: StoredRun) -> dict[str, int]:
    """Return the numbers of images that the words and denominators of the page need."""
    poison = np.zeros_like(view.flagged) if view.poison is None else view.poison
    counted = view.flagged & ~view.covered  # cover images are neither poison nor clean
    return {
        "images": len(view.ids),
        "flagged": int(view.flagged.sum()),
        "poison": int(poison.sum()),
        "cover": int(view.covered.sum()),
        "caught": int((view.flagged & poison).sum()),
        "judged": int(counted.sum()),
        "clean": int((~poison & ~view.covered).sum()),
        "unscored": int((~view.scored).sum()),
    }


def metric_rows(metrics: Metrics, sizes: dict[str, int] | None = None) -> list[MetricRow]:
    """Return the figures that were measured, each with its denominator and how to read it.

    Args:
        metrics: The figures.
        sizes: From :func:`counts` where the truth is known: they leave cover images out of the denominators.
    """
    n_flagged = sizes["judged"] if sizes else metrics.n_flagged
    n_poison = sizes["poison"] if sizes else metrics.n_poison
    n_clean = sizes["clean"] if sizes else None
    if n_clean is None and metrics.n_train is not None and metrics.n_poison is not None:
        n_clean = metrics.n_train - metrics.n_poison - (metrics.n_cover or 0)
    covers = ", cover images not counted" if (sizes or {}).get("cover") or metrics.n_cover else ""
    shares = (*_of_the_network(metrics), *_of_the_flagged(metrics, n_flagged, n_poison, n_clean, covers))
    rows = [
        MetricRow(name, percent(value), f"of {'?' if n is None else grouped(n)} {what}", meaning)
        for name, value, n, what, meaning in shares
        if value is not None
    ]
    ranked = (
        ("AUROC", metrics.auroc, "How well the scores rank poison above clean; 0.5 is chance, 1 is perfect."),
        ("AUPRC", metrics.auprc, "Average precision down the ranking; chance is the share of poison."),
    )
    pair = [f"{'?' if n is None else grouped(n)} {what}" for n, what in ((n_poison, "poison"), (n_clean, "clean"))]
    rows += [
        MetricRow(name, f"{value:.3f}", f"over {pair[0]} and {pair[1]} images", meaning)
        for name, value, meaning in ranked
        if value is not None
    ]
    return rows


# A share of the table: its name, the share, the number of what it is a share of, what that is, and how to read it.
_Share: TypeAlias = tuple[str, float | None, int | None, str, str]


def _of_the_network(metrics: Metrics) -> tuple[_Share, ...]:
    # The accuracy on the target class is measured beside every test set, unless there is no one target.
    untargeted = metrics.n_test is not None and metrics.n_test_target is None
    triggered = "triggered images, every test image" if untargeted else "triggered images of non-target classes"
    return (
        ("Clean accuracy", metrics.ca, metrics.n_test, "test images", "Higher is better."),
        (
            "Clean accuracy, target class",
            metrics.ca_target,
            metrics.n_test_target,
            "test images of the class that the attack aims at",
            "Higher is better; it drops where a defence throws out too much of that class.",
        ),
        (
            "Attack success",
            metrics.asr,
            metrics.n_triggered,
            triggered,
            "Lower is better. A network trained on clean data also sends a few per cent there by mistake.",
        ),
        (
            "Robust accuracy",
            metrics.ra,
            metrics.n_triggered,
            triggered,
            "Predicted as their own class. Higher is better; where attack success and this are both low, "
            "the model is broken, not clean.",
        ),
        (
            "Hold-out accuracy",
            metrics.holdout_accuracy,
            metrics.n_holdout,
            "held-out training images",
            "This part may be poisoned too: a model that has learned the backdoor also scores well on it.",
        ),
    )


def _of_the_flagged(
    metrics: Metrics, n_flagged: int | None, n_poison: int | None, n_clean: int | None, covers: str
) -> tuple[_Share, ...]:
    return (
        (
            "Precision",
            metrics.precision,
            n_flagged,
            f"flagged images{covers}",
            "Of what is flagged, the share that is poison.",
        ),
        (
            "Recall",
            metrics.recall,
            n_poison,
            "poison images",
            "Of the poison, the share that is flagged. The rest stayed unflagged in the data.",
        ),
        (
            "False alarms",
            metrics.fpr,
            n_clean,
            "clean training images",
            "Of the clean images, the share that is flagged.",
        ),
    )


def in_doubt(view: StoredRun) -> frozenset[int]:
    """Return the labels of the classes to mark as in doubt; none where all are, since a mark on all marks nothing."""
    return frozenset(view.doubtful) if len(view.doubtful) < len(view.classes) else frozenset()


def class_rows(view: StoredRun) -> list[ClassRow]:
    """Return one row a class, most flagged first, and those in doubt before the others."""

    def per_class(members: NDArray[np.bool_] | None) -> list[int]:
        labels = view.labels if members is None else view.labels[members]
        return [int(n) for n in np.bincount(labels, minlength=len(view.classes))]

    none = np.zeros_like(view.flagged)
    poison = per_class(none if view.poison is None else view.poison)
    columns = zip(view.classes, per_class(None), per_class(view.flagged), poison, per_class(view.covered), strict=True)
    doubtful = in_doubt(view)
    rows = [
        ClassRow(name, images, flagged, flagged / images if images else 0.0, bad, cover, label in doubtful)
        for label, (name, images, flagged, bad, cover) in enumerate(columns)
    ]
    return sorted(rows, key=lambda row: (-row.flagged, not row.doubtful))
