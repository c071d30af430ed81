"""What a run gives back to Python, and how it shows itself there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from antibackdoor.imagelist import frame_of
from antibackdoor.isolation import most_suspect_first
from antibackdoor.report.notebook import run_html
from antibackdoor.stored import class_verdicts
from antibackdoor.types import ImageSet, Isolation, Outcome, PoisonedSet, RunRecord, Verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Result"]


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a run gives back.

    Attributes:
        model: The network, in evaluation mode, or None after a scan.
        isolation: Scores, flags and verdict, in the order of ``data``.
        record: Everything measured.
        outcome: What the defence returned, with the losses of every phase.
        data: The training data as observed.
        truth: What was planted, or None.
    """

    model: nn.Module | None
    isolation: Isolation
    record: RunRecord
    outcome: Outcome
    data: ImageSet
    truth: PoisonedSet | None

    @property
    def class_verdicts(self) -> list[Verdict]:
        """The verdict on each of the K classes; see :func:`antibackdoor.stored.class_verdicts`."""
        found = self.isolation
        labels, flagged = self.data.labels.numpy(), found.flagged.numpy()
        return class_verdicts(labels, flagged, self.data.num_classes, found.verdict, found.doubtful)

    def suspects(self, *, everything: bool = False) -> pd.DataFrame:
        """Return the flagged images as a pandas DataFrame, most suspect first.

        Args:
            everything: Return all images of the set.

        Returns:
            The columns ``id``, ``label``, ``score``, ``suspect``, ``class_verdict`` as in the list that ``export``
            writes, and ``row``, the place of each image in ``data``.

        Raises:
            ConfigError: pandas is not installed.
        """
        order = most_suspect_first(self.isolation.scores)
        if not everything:
            order = order[self.isolation.flagged[order]]
        rows, labels, verdicts = order.tolist(), self.data.labels[order].tolist(), self.class_verdicts
        return frame_of(
            {
                "id": [self.data.ids[row] for row in rows],
                "label": [self.data.classes[label] for label in labels],
                "score": self.isolation.scores[order].tolist(),
                "suspect": self.isolation.flagged[order].tolist(),
                "class_verdict": [verdicts[label] for label in labels],
                "row": rows,
            }
        )

    def __repr__(self) -> str:
        kind = "scan" if self.model is None else type(self.model).__name__
        return f"Result({self.isolation!r}, {self.data!r}, {kind})"

    def _repr_html_(self) -> str:
        return run_html(self.isolation, self.data, self.record.metrics, self.record.evidence, self.class_verdicts)
