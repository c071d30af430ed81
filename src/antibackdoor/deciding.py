"""What a person decided, fed back: dropped images stay out, kept ones are vouched for, others get another label."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from antibackdoor.data.arrays import check_trainable
from antibackdoor.decisions import DECISIONS, Decision, check_decisions, decisions_digest, read_decisions
from antibackdoor.errors import DataError
from antibackdoor.types import ImageSet, Isolation, Json, PoisonedSet

__all__ = ["Decided", "decide", "follow", "spared"]


@dataclass(frozen=True, eq=False)
class Decided:
    """A set as a person left it.

    Attributes:
        data: What is left, M images, with those that a person vouches for.
        rows: int64 (M,), which images of the set before these are.
        decisions: What was decided, each with the class that the image has now.
        absent: How many of them are on images that the set did not hold.
        digest: SHA-256 of what was decided.
    """

    data: ImageSet
    rows: Tensor
    decisions: tuple[Decision, ...]
    absent: int
    digest: str

    def poisoned(self, truth: PoisonedSet) -> PoisonedSet:
        """Return what is left of a poisoned set; poison under its first label again counts as cover."""
        poison, cover, original = (part[self.rows] for part in (truth.poison, truth.cover, truth.original_labels))
        restored = poison & (truth.observed.labels[self.rows] != original) & (self.data.labels == original)
        return dataclasses.replace(
            truth,
            observed=self.data,
            poison=poison & ~restored,
            cover=cover | restored,
            original_labels=original,
            origin=truth.made_of[self.rows],
        )

    def to_json(self) -> dict[str, Json]:
        """Return what the record of a run says of it."""
        counts = Counter(one.decision for one in self.decisions)
        return {"digest": self.digest, **{name: counts[name] for name in DECISIONS}, "absent": self.absent}

    def sentence(self) -> str:
        """Return it in words."""
        counts = Counter(one.decision for one in self.decisions)
        absent = f"; {self.absent:,} of these are not in the set" if self.absent else ""
        return (
            f"A person decided on {len(self.decisions):,} images: {counts['keep']:,} kept, {counts['drop']:,} dropped, "
            f"{counts['relabel']:,} relabelled, {counts['unsure']:,} left open{absent}."
        )


def decide(data: ImageSet, path: Path) -> Decided:
    """Follow a file of decisions; see :func:`follow`.

    Args:
        data: The set.
        path: The file.

    Raises:
        StorageError: It cannot be read.
        DataError: It is no file of decisions or not of this set, or leaves too little to train on.
    """
    return follow(data, read_decisions(path), path)


def follow(data: ImageSet, decisions: Sequence[Decision], path: Path) -> Decided:
    """Follow decisions: leave out what is dropped, vouch for what is kept, give others their label.

    Args:
        data: The set.
        decisions: One an image.
        path: Their file, for messages.

    Raises:
        DataError: They are not of this set, or leave too little to train on.
    """
    own = [data.classes[label] for label in data.labels.tolist()]
    absent = {one.id for one in check_decisions(decisions, data.ids, own, path)}
    row_of, label_of = (
        {name: row for row, name in enumerate(data.ids)},
        {name: k for k, name in enumerate(data.classes)},
    )
    labels, stays = data.labels.clone(), torch.ones(len(data), dtype=torch.bool)
    vouched, made = torch.zeros_like(stays), []
    for one in decisions:
        if one.id in absent:
            made.append(one)
            continue
        row = row_of[one.id]
        stays[row] = one.decision != "drop"
        vouched[row] = one.decision in ("keep", "relabel")
        if one.decision == "relabel":
            labels[row] = label_of[one.label]
        made.append(dataclasses.replace(one, label=data.classes[int(labels[row])]))
    rows = stays.nonzero().squeeze(1)
    left = dataclasses.replace(data, labels=labels, vouched=vouched).select(rows)
    try:
        check_trainable(data.name, left.classes, left.labels)
    except DataError as error:
        raise DataError(f"{path} leaves too little to train on: {error}") from None
    return Decided(left, rows, tuple(made), len(absent), decisions_digest(decisions))


def spared(isolation: Isolation, data: ImageSet) -> Isolation:
    """Return an isolation that flags nobody whom a person vouches for.

    Args:
        isolation: What a defence found; one that knows nothing of this may have flagged them.
        data: The set.
    """
    flagged = data.unvouched(isolation.flagged)
    fewer = int(isolation.flagged.sum()) - int(flagged.sum())
    if not fewer:
        return isolation
    images = "image" if fewer == 1 else "images"
    sentence = f"{fewer:,} {images} more would be flagged if nobody vouched for them."
    return dataclasses.replace(isolation, flagged=flagged, evidence=(*isolation.evidence, sentence))
