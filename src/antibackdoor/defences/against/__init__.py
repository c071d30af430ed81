"""``scan --against RUN``: a batch of new images is compared with what an earlier run kept of its set."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from antibackdoor.defences.against.groups import by_group
from antibackdoor.defences.against.judge import FEWEST_NEW, FEWEST_OLD, Answer, Judged, judge
from antibackdoor.defences.against.projection import contents_of, pictures_of
from antibackdoor.defences.against.statistics import FILE, Statistics, read
from antibackdoor.defences.base import Defence
from antibackdoor.defences.encoding import encoded_by
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.models import BuildModel
from antibackdoor.models.encoders import encoder_from
from antibackdoor.registry import Registry
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import Encoded, ImageSet, Isolation, Json, Outcome

__all__ = ["AGAINST", "FILE", "Against", "Statistics", "against_from", "read"]

AGAINST = "against"
_NAMED = 3


@dataclass(frozen=True)
class Against(Defence):
    """A batch beside what is kept of an earlier set, whose images are not read again; nothing is trained.

    Of every class it is asked whether its new images are among the least like it more often than old ones; whether some
    have only one another as neighbours, by what an encoder sees; and the same by a picture that they share. p-values
    are exact for a batch that is drawn as the old set was, and corrected by Holm for all questions about all classes.
    It tells what is other than before, not poison from another source: its verdict is never "poisoned".

    Attributes:
        runs: Folders of finished runs, at least one; several are taken together.
        alpha: Largest probability of naming any image in a batch that is drawn as the old set was, above 0 and below 1.
        witness: The encoder, of that name in the earlier runs; None takes theirs.
        old: What the runs kept, together.
        groups: M names, whose an image is; None where that is not asked. Filled in by :meth:`given`.
        column: What they are called.

    Raises:
        ConfigError: No run, ``alpha`` out of its range, or runs that do not go together or have another encoder.
        StorageError: A run holds no statistics, or they are damaged.

    Source:
        Ours; the rooms name what each step was taken from.
    """

    runs: tuple[str, ...] = ()
    alpha: float = 0.01
    witness: str | None = None
    old: Statistics = field(init=False, repr=False, compare=False)
    groups: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)
    column: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs (--against): give the folder of a finished run")
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha: must be above 0 and below 1, got {self.alpha}")
        parts = [read(Path(run)) for run in self.runs]
        first = parts[0].kept
        for run, part in zip(self.runs[1:], parts[1:], strict=True):
            if (part.kept.classes, part.kept.shape) != (first.classes, first.shape):
                raise ConfigError(f"runs (--against): {run} has other classes or image sizes than {self.runs[0]}")
            if not first.agrees(part.kept.encoder, part.kept.probe):
                raise ConfigError(f"runs (--against): {run} has another encoder than {self.runs[0]}")
        if self.witness not in (None, first.encoder):
            raise ConfigError(
                f"runs (--against): the encoder of {self.runs[0]} is {first.encoder!r}, not {self.witness!r}; leave "
                "defence.witness out"
            )
        object.__setattr__(self, "old", reduce(Statistics.merged, parts))  # frozen for everybody else

    def given(self, data: ImageSet, groups: Sequence[str] | None, column: str | None) -> Against:
        """Return the same, told whose each image of a batch is, if the batch can be compared.

        Args:
            data: The batch, M images.
            groups: M names, or None.
            column: What they are called, or None.

        Raises:
            DataError: It has classes that the earlier set has not, in another order, or images of another shape.
        """
        self._labels(data)
        if data.shape != self.old.kept.shape:
            mine, theirs = ("x".join(map(str, shape)) for shape in (data.shape, self.old.kept.shape))
            raise DataError(f"{data.name}: its images are {mine}, those of {self.runs[0]} {theirs}; see --image-size")
        told = copy.copy(self)
        object.__setattr__(told, "groups", None if groups is None else tuple(groups))
        object.__setattr__(told, "column", column or "")
        return told

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Ask the encoder, and compare."""
        kept = self.old.kept
        encoder = encoder_from(kept.encoder, fit.runtime.device)
        if encoder is None:
            raise ConfigError(f"--against: {self.runs[0]} has statistics by no encoder")
        encoded = encoded_by(encoder, data, fit.runtime)
        if not kept.agrees(encoded.encoder, encoded.probe):
            raise ConfigError(
                f"--against: the encoder {kept.encoder!r} is not the one that looked at the set of {self.runs[0]}: it "
                "sees other things in the same pictures; scan that set again"
            )
        judged = fit.runtime.first(self._judged(data, encoded))
        found: dict[str, Json] = {"compared": [self._listed(answer) for answer in judged.answers]}
        if self.groups is not None:
            found["groups"] = by_group(self.column, self.groups, self._labels(data), self.old.labels, judged)
        return Outcome(None, self._isolation(data, judged), (), encoded, found)

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Refuse: a comparison trains nothing.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("--against compares a batch and trains no network: use `antibackdoor scan`")

    def _labels(self, data: ImageSet) -> NDArray[np.int64]:
        """Return the labels as the earlier set numbers them, int64 (M,)."""
        known = {name: label for label, name in enumerate(self.old.kept.classes)}
        if strange := [name for name in data.classes if name not in known]:
            raise DataError(
                f"{data.name}: class {strange[0]!r} is not in the set of {self.runs[0]} ({len(strange)} such); it has "
                f"{', '.join(self.old.kept.classes[:12])}{', ...' if len(known) > 12 else ''}"
            )
        table = np.array([known[name] for name in data.classes], dtype=np.int64)
        if (np.diff(table) < 0).any():
            raise DataError(f"{data.name}: its classes are in another order than those of the set of {self.runs[0]}")
        found: NDArray[np.int64] = table[data.labels.numpy()]
        return found

    def _judged(self, data: ImageSet, encoded: Encoded) -> Judged:
        contents, pictures = contents_of(encoded.features), pictures_of(data.images)
        return judge(self.old, contents, pictures, self._labels(data), self.alpha)

    def _isolation(self, data: ImageSet, judged: Judged) -> Isolation:
        """Return the verdict, with a sentence for each answer that is accepted."""
        classes, labels = self.old.kept.classes, self._labels(data)
        accepted = [answer for answer in judged.answers if answer.corrected <= self.alpha]
        said = [
            f"Class {classes[a.label]!r}: {_WORDS[a.question]} (p {a.corrected:.2g}, corrected for "
            f"{len(judged.answers)} questions; {a.named:,} of {int((labels == a.label).sum()):,} new images named)."
            for a in accepted
        ]
        if not accepted:
            least = f", the least p {judged.answers[0].corrected:.2g}" if judged.answers else ""
            said.append(f"No class of the batch stands out from the {self._old_count} images of before{least}.")
        beheld = {data.classes.index(classes[answer.label]) for answer in accepted}
        if 2 * len(beheld) > max(2, data.num_classes):
            said.append("Most classes stand out: the batch as a whole is of another kind, not a part of it.")
        if judged.passed:
            names = ", ".join(repr(classes[label]) for label in judged.passed[:_NAMED])
            more = f" and {len(judged.passed) - _NAMED} more" if len(judged.passed) > _NAMED else ""
            said.append(
                f"Too few images to compare (under {FEWEST_NEW} new or {FEWEST_OLD} old ones) in class {names}{more}."
            )
        said.append(
            f"In a batch that is drawn as the earlier set was, anything is named with a probability of at most "
            f"{self.alpha:g}; clean images of another source may be named as well."
        )
        small = np.isin(labels, judged.passed)
        unsure = 2 * int(small.sum()) > len(labels)
        doubtful = beheld | {int(label) for label in np.unique(data.labels.numpy()[small]) if unsure}
        verdict = "undecided" if accepted or unsure else "no sign of poison"
        return Isolation(
            torch.from_numpy(judged.scores).float(),
            torch.from_numpy(judged.flagged),
            verdict,  # type: ignore[arg-type]
            tuple(said),
            tuple(sorted(doubtful)),
        )

    def _listed(self, answer: Answer) -> dict[str, Json]:
        values: dict[str, Json] = dataclasses.asdict(answer)
        return {**values, "label": self.old.kept.classes[answer.label]}

    @property
    def _old_count(self) -> str:
        return f"{int(self.old.counts.sum()):,}"


_WORDS = {
    "unlike its class": "new images are among the least like it more often than old ones",
    "a group by contents": "new images form a group that no old ones are in, by what they show",
    "a group by a shared picture": "new images form a group that no old ones are in, by a picture that they share",
}
# No member of the table of defences, whose members need a set alone.
_TABLE: Registry[Defence] = Registry("defence", {AGAINST: Against}, base=Defence)


def against_from(params: Mapping[str, object]) -> Defence:
    """Build the comparison from plain values, as those of a configuration.

    Raises:
        AntiBackdoorError: As :class:`Against`; or a setting that it has not.
    """
    return _TABLE.build(AGAINST, params)
