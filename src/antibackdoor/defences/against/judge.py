"""From what a batch shows beside an earlier set to who is named: three questions a class, one error for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.against.crowd import Crowd, crowd, whitened
from antibackdoor.defences.against.statistics import Statistics
from antibackdoor.defences.against.unlike import ranks, scores, tail
from antibackdoor.isolation.holm import holm

__all__ = ["CONTENTS", "FEWEST_NEW", "FEWEST_OLD", "PICTURES", "UNLIKE", "Answer", "Judged", "judge"]

UNLIKE, CONTENTS, PICTURES = "unlike its class", "a group by contents", "a group by a shared picture"
# Images of a class below which it is not compared.
FEWEST_NEW, FEWEST_OLD = 5, 20
# Share of false ones that is expected among the images that are named in a class.
_FALSE = 0.1
_FLOOR = 1e-300


@dataclass(frozen=True)
class Answer:
    """One question about one class.

    Attributes:
        label: The class, as the old set numbers it.
        question: ``UNLIKE``, ``CONTENTS`` or ``PICTURES``.
        p: 0..1, exact for a class of a batch that is drawn as the old set was; not corrected.
        corrected: The same, corrected by Holm for all questions about all classes.
        named: How many images are named for it; none where the answer is not accepted.
    """

    label: int
    question: str
    p: float
    corrected: float
    named: int


@dataclass(frozen=True, eq=False)
class Judged:
    """What comes of a batch of M images.

    Attributes:
        answers: The smallest p first.
        flagged: bool (M,), images that are named.
        scores: float64 (M,), minus the decimal logarithm of the smallest p-value of an image by itself.
        unlike: bool (M + n,), new images and then the old sample: the tenth of each class, of both together, that is
            least like it.
        crowded: bool (M,), the tenth of each class that keeps most to new images.
        passed: Labels of classes with too few images to compare.
    """

    answers: tuple[Answer, ...]
    flagged: NDArray[np.bool_]
    scores: NDArray[np.float64]
    unlike: NDArray[np.bool_]
    crowded: NDArray[np.bool_]
    passed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Compared:
    """One class: its rows, old and new, and what each question has found."""

    label: int
    rows: NDArray[np.int64]
    old: NDArray[np.int64]
    ranks: NDArray[np.float64]
    tail: float
    crowds: dict[str, Crowd]

    @property
    def found(self) -> dict[str, float]:
        return {UNLIKE: self.tail} | {name: each.p for name, each in self.crowds.items()}


def judge(
    old: Statistics,
    contents: NDArray[np.int16],
    pictures: NDArray[np.int16],
    labels: NDArray[np.int64],
    alpha: float,
) -> Judged:
    """Compare a batch with the statistics of an earlier set.

    Args:
        old: Of the earlier set.
        contents: int16 (M, 256), of the batch; see ``projection``.
        pictures: int16 (M, 256), the same of its pictures.
        labels: int64 (M,), as the old set numbers its classes.
        alpha: Largest probability of naming anything in a batch that is drawn as the old set was.
    """
    of_old, of_new = scores(old, contents, labels)
    compared = list(_compared(old, contents, pictures, labels, of_old, of_new))
    raw = [(each, question, p) for each in compared for question, p in each.found.items()]
    corrected = holm([p for *_, p in raw])
    flagged, points = np.zeros(len(labels), dtype=bool), np.zeros(len(labels))
    answers = []
    for (each, question, p), adjusted in zip(raw, corrected, strict=True):
        own = np.zeros(len(each.rows), dtype=bool)
        if adjusted <= alpha:
            own = _falsely_at_most(each.ranks if question == UNLIKE else each.crowds[question].each)
            flagged[each.rows] |= own
        answers.append(Answer(each.label, question, p, adjusted, int(own.sum())))
    unlike, alone = np.zeros(len(labels) + len(old.labels), dtype=bool), np.zeros(len(labels), dtype=bool)
    for each in compared:
        least = np.minimum.reduce([each.ranks, *(one.each for one in each.crowds.values())])
        points[each.rows] = -np.log10(np.maximum(least, _FLOOR))
        both = np.concatenate([of_new[each.rows], of_old[each.old]])
        places = np.concatenate([each.rows, len(labels) + each.old])
        unlike[places[_highest(both)]] = True
        kept = np.minimum.reduce([one.each for one in each.crowds.values()])
        alone[each.rows[_highest(-kept)]] = True
    seen = {each.label for each in compared}
    passed = tuple(label for label in np.unique(labels).tolist() if label not in seen)
    return Judged(tuple(sorted(answers, key=lambda a: (a.p, a.label))), flagged, points, unlike, alone, passed)


def _compared(
    old: Statistics,
    contents: NDArray[np.int16],
    pictures: NDArray[np.int16],
    labels: NDArray[np.int64],
    of_old: NDArray[np.float64],
    of_new: NDArray[np.float64],
) -> Iterator[_Compared]:
    """Yield every class that has enough images on both sides."""
    shown = whitened(old.pictures, old.counts, old.labels, pictures, labels)
    for label in np.unique(labels).tolist():
        rows, known = np.flatnonzero(labels == label), np.flatnonzero(old.labels == label)
        if len(rows) < FEWEST_NEW or len(known) < FEWEST_OLD:
            continue
        crowds = {
            CONTENTS: crowd(old.contents.sample[known].astype(np.float64), contents[rows].astype(np.float64)),
            PICTURES: crowd(shown[0][known], shown[1][rows]),
        }
        yield _Compared(
            label, rows, known, ranks(of_old[known], of_new[rows]), tail(of_old[known], of_new[rows]), crowds
        )


def _falsely_at_most(p: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of p-values are named so that a tenth of these is expected to be false, bool (m,).

    Source:
        Benjamini and Hochberg (1995).
    """
    order = np.argsort(p, kind="stable")
    under = np.flatnonzero(p[order] <= _FALSE * np.arange(1, len(p) + 1) / len(p))
    found = np.zeros(len(p), dtype=bool)
    if len(under):
        found[order[: under[-1] + 1]] = True
    return found


def _highest(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the places of the highest tenth, one at least."""
    return np.argsort(-values, kind="stable")[: max(1, round(len(values) / 10))]
