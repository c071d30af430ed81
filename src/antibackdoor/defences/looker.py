"""How the defence ``filter`` looks at a training: when, at which images, and from how much evidence on it suspects."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from antibackdoor.isolation import Alarm, Evidence, Look, Network, look, repeated
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import History, ImageSet

__all__ = ["Looker", "copies_of"]


def copies_of(data: ImageSet, history: History) -> Tensor:
    """Return the exact copies in the set, bool (N,); an image that was trained on is an original first."""
    held_out = None if history.held_out is None else torch.from_numpy(history.held_out)
    return repeated(data.images, data.labels, held_out)


@dataclass(frozen=True)
class Looker:
    """Looks at trainings.

    Attributes:
        alarm: From how much evidence on a class is suspected.
        share: Share of a plan's epochs after which it looks for the first time, above 0 and below 1.
        fewest: Epochs that a look needs.
        latest: Epochs after which the first look comes at the latest, at least ``fewest``.
        features: Sharpen the suspects by what the network makes of them.
        channels: Look at what excites the network's channels as well.
        late: Look at the end for what was learned late, and for what was new to the network.
    """

    alarm: Alarm
    share: float
    fewest: int
    latest: int
    features: bool
    channels: bool
    late: bool

    def first(self, plan: TrainPlan) -> int:
        """Return after how many epochs of the plan it looks for the first time."""
        return min(max(self.fewest, min(self.latest, round(self.share * plan.epochs))), plan.epochs)

    def look_at(
        self,
        history: History,
        model: nn.Module,
        data: ImageSet,
        fit: Fit,
        plan: TrainPlan,
        *,
        kept: Tensor | None = None,
        earlier: Tensor | None = None,
        copies: Tensor | None = None,
    ) -> Look:
        """Look at the images that were trained on; see ``isolation.look``.

        Args:
            history: Of the training so far, from its first epoch.
            model: What it trained.
            data: The set.
            fit: The training loop, which says where to compute.
            plan: Of the whole training.
            kept: bool (N,), the images that were trained on; all by default.
            earlier: ``Look.seen`` of the first look at the same training, if this is not it.
            copies: bool (N,), what :func:`copies_of` finds in the set, if it was asked before.

        Returns:
            The cuts of every class and who is suspected; the same in every process, but for ``seen``.
        """
        rows = torch.arange(len(data)) if kept is None else kept.nonzero().squeeze(1)
        # An image and its exact copies are one.
        apart = copies_of(data, history) if copies is None else copies
        if history.held_out is not None:
            apart = apart | torch.from_numpy(history.held_out)
        held_out = apart[rows] if bool(apart.any()) else None
        losses = torch.from_numpy(history.losses)[:, rows]
        evidence = Evidence(losses, data.labels[rows], data.num_classes, held_out, Network(model, data, fit.runtime))
        alarm = self.alarm if len(losses) >= self.fewest else Alarm.never()
        nobody = torch.zeros(len(data), dtype=torch.bool)
        found = Look({}, nobody, nobody)
        if fit.runtime.rank == 0:  # The others hear of it: all must suspect the same.
            found = look(
                evidence,
                rows,
                len(data),
                alarm=alarm,
                early=len(losses) < plan.epochs,
                half=self.first(plan),
                earlier=earlier,
                features=self.features,
                channels=self.channels,
                late=self.late,
            )
        heard = fit.runtime.first(dataclasses.replace(found, seen=None))
        return dataclasses.replace(heard, seen=found.seen)
