"""The small door: isolation for people with a training loop of their own, in any modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.decide import Scope, flag_share, rank_within_classes
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.signals import SIGNALS, Signal
from antibackdoor.types import Isolation

__all__ = ["LossRecorder", "isolate"]


def isolate(
    evidence: Evidence, *, signal: Signal | str = "trajectory", share: float = 0.01, scope: Scope = "set"
) -> Isolation:
    """Score every sample and flag a fixed share.

    Args:
        evidence: Losses of all epochs, and labels.
        signal: What scores; a name takes its default hyper-parameters.
        share: Share to flag, 0..1.
        scope: "set" flags the most suspect of all, "class" the most suspect of every class.

    Returns:
        Scores and flags. The verdict is "undecided": a fixed share is flagged whether or not there is poison.
    """
    scorer = SIGNALS.build(signal, {}) if isinstance(signal, str) else signal
    scores = scorer.scores(evidence).float()
    if scope == "class":
        scores = rank_within_classes(scores, evidence.labels)
    flagged = flag_share(scores, share)
    return Isolation(scores, flagged, "undecided", (_describe(flagged, evidence, share, scope),))


def _describe(flagged: Tensor, evidence: Evidence, share: float, scope: Scope) -> str:
    counts = torch.bincount(evidence.labels[flagged], minlength=evidence.num_classes)
    where = f"{int(counts.max())} of them carry label {int(counts.argmax())}" if int(flagged.sum()) else "none"
    return (
        f"A fixed {100 * share:g} % ({int(flagged.sum())} of {len(flagged)} samples) is flagged, ranked over "
        f"{'the whole set' if scope == 'set' else 'each class'}; {where}. A fixed share says which samples to look at "
        "first, not whether there is poison."
    )


def _integers(values: Tensor | Sequence[int], name: str) -> Tensor:
    given = torch.as_tensor(values).detach().cpu()
    if given.numel() and (given.is_floating_point() or given.dtype == torch.bool):
        raise ConfigError(f"{name}: must be integers, got {str(given.dtype).removeprefix('torch.')}")
    return given.to(torch.int64)


class LossRecorder:
    """Collects the losses that a training loop computes anyway, and isolates at the end.

    Feed it ``(indices, losses)`` after every forward pass. An epoch ends when :meth:`end_epoch` is called.

    Args:
        labels: N observed labels (int), one a sample, at least 0; for tasks without classes give zeros.

    Raises:
        ConfigError: The labels are not integers of at least 0.

    Example:
        >>> recorder = LossRecorder(labels=[0, 0, 1, 1])
        >>> for epoch in range(3):
        ...     recorder.update([0, 1, 2, 3], [0.9, 0.1, 0.5, 0.4])
        ...     recorder.end_epoch()
        >>> recorder.isolate(share=0.25).flagged.shape
        torch.Size([4])
    """

    def __init__(self, labels: Tensor | Sequence[int]) -> None:
        self._labels = _integers(labels, "labels")
        if len(self._labels) and int(self._labels.min()) < 0:
            raise ConfigError(f"labels: must be at least 0, got {int(self._labels.min())}")
        self._epochs: list[Tensor] = []
        self._current = self._fresh()

    def _fresh(self) -> Tensor:
        return torch.full((len(self._labels),), float("nan"))

    def update(self, indices: Tensor | Sequence[int], losses: Tensor | Sequence[float]) -> None:
        """Record the losses of one batch.

        Args:
            indices: B rows, each in 0..N-1.
            losses: B losses, one a sample, not averaged; a second loss of a sample in an epoch replaces the first.

        Raises:
            ConfigError: The two do not match, an index is out of range, or a loss is infinite or not a number.
        """
        rows = _integers(indices, "indices")
        values = torch.as_tensor(losses, dtype=torch.float32).detach().cpu()
        if rows.shape != values.shape or rows.ndim != 1:
            raise ConfigError(
                f"update: {tuple(rows.shape)} indices and {tuple(values.shape)} losses; expected one loss a sample "
                "(reduction='none')"
            )
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(self._labels)):
            raise ConfigError(f"update: an index is outside 0..{len(self._labels) - 1}")
        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            raise ConfigError(
                f"update: the loss of sample {int(rows[bad][0])} is {float(values[bad][0])}; losses must be finite, so "
                "leave such samples out or stop the training"
            )
        self._current[rows] = values

    def end_epoch(self) -> None:
        """Close the epoch; a sample that was not seen in it keeps its loss of the epoch before.

        Raises:
            ConfigError: A sample was not seen in the first epoch.
        """
        missing = self._current.isnan()
        if bool(missing.any()):
            if not self._epochs:
                raise ConfigError(f"end_epoch: {int(missing.sum())} samples have no loss in the first epoch")
            self._current[missing] = self._epochs[-1][missing]
        self._epochs.append(self._current)
        self._current = self._fresh()

    @property
    def losses(self) -> Tensor:
        """float32 (E, N), the epochs so far."""
        return torch.stack(self._epochs) if self._epochs else torch.empty(0, len(self._labels))

    def isolate(self, *, signal: Signal | str = "trajectory", share: float = 0.01, scope: Scope = "set") -> Isolation:
        """Score every sample and flag a fixed share; see :func:`isolate`."""
        classes = int(self._labels.max()) + 1 if len(self._labels) else 1
        return isolate(Evidence(self.losses, self._labels, classes), signal=signal, share=share, scope=scope)
