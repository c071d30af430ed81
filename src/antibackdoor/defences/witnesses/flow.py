"""The flow of the default defence: observe, decide, train without the suspects, and let that network judge."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.defences.balance import lost, make_up
from antibackdoor.defences.witnesses.crosscheck import Adjudication, adjudicate
from antibackdoor.defences.witnesses.decide import Decision, decide
from antibackdoor.defences.witnesses.observe import Seen, log_losses, observe, own_features, train_in_parts
from antibackdoor.defences.witnesses.words import isolation_of
from antibackdoor.isolation import Network
from antibackdoor.models import BuildModel
from antibackdoor.models.encoders import Encoder
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import History, ImageSet, Outcome

__all__ = ["Search"]

Bools = NDArray[np.bool_]
# Forward passes over one ordinary training, evenly; the first half of them comes before the look half-way.
_PASSES = 10
# Trainings after the detector's: each may show what the one before could not.
_ROUNDS = 3
# A network trained on fewer images makes as many updates, but at most so many times the epochs.
_LONGEST = 3.0


@dataclass(eq=False)
class Search:
    """One search: what was trained so far, and who is suspected.

    Attributes:
        data: The set.
        build_model: Builds the network that is asked for.
        fit: The training loop.
        plan: Of its ordinary training.
        seeds: The run's streams.
        alpha: Largest probability of accusing any class of a clean set in one look.
        encoder: The second witness, or None.
        histories: Of every training so far.
        decisions: Of every look, in order.
        notes: A sentence for what was done after a look.
        seen: What the detector and the encoder showed.
        suspects: bool (N,).
        near: bool (N,), the suspects and what may belong to them.
        cleared: bool (N,), classes that were accused and are not any more.
        model: The network that is asked for, once it is trained.
    """

    data: ImageSet
    build_model: BuildModel
    fit: Fit
    plan: TrainPlan
    seeds: Seeds
    alpha: float
    encoder: Encoder | None
    histories: list[History] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: Seen = field(init=False)
    suspects: Bools = field(init=False)
    near: Bools = field(init=False)
    cleared: Bools = field(init=False)
    model: nn.Module | None = None

    def __post_init__(self) -> None:
        self.suspects, self.near, self.cleared = np.zeros((3, len(self.data)), dtype=bool)

    def look_with_detector(self) -> None:
        """Train the detector, ask the encoder, and decide."""
        self.seen, histories = observe(self.data, self.encoder, fit=self.fit, seeds=self.seeds)
        self.histories += histories
        self._take(self.seen)

    def train(self) -> None:
        """Train the network that is asked for without the suspects, look again, and go on while that finds more."""
        for number in range(_ROUNDS):
            shown = torch.from_numpy(~self.near)
            last = number == _ROUNDS - 1
            self.model, found = self._train_once(number, shown, looks=not last)
            if found or last:
                continue
            if not self.near.any() or not self._adjudicate(self.model, shown).changes:
                break
        if self.near.any() and self.model is not None:
            self._balance(self.model, ~self.near)

    def outcome(self, *, scanned: bool) -> Outcome:
        """Return the network, the verdict and what every training left.

        Args:
            scanned: The detector alone has looked.
        """
        isolation = isolation_of(self.seen, self.decisions, self.suspects, tuple(self.notes), scanned=scanned)
        model = self.seen.network if self.model is None else self.model
        return Outcome(model, isolation, tuple(self.histories))

    def _take(self, seen: Seen) -> bool:
        """Decide, add what is suspected, and return whether that is more than before."""
        # All processes must leave out the same images.
        decision = self.fit.runtime.first(decide(seen, self.alpha, known=self.near | self.cleared))
        self.decisions.append(decision)
        self.suspects |= decision.suspects
        self.near |= decision.near
        return bool(decision.suspects.any())

    def _train_once(self, number: int, shown: Tensor, *, looks: bool) -> tuple[nn.Module, bool]:
        """Train one network, looking half-way and at its end; it is given up half-way where that finds more.

        The phases of the first network that sees everything give, together, the bits of ordinary training.
        """
        everything = bool(shown.all())
        model = self.build_model(self.seeds.generator("init"))
        plan = self.plan if everything else self._longer(shown)
        name = "train" if everything else f"retrain {number}"
        epochs = sorted({max(1, round(plan.epochs * i / _PASSES)) for i in range(1, _PASSES + 1)})
        half = epochs[max(0, len(epochs) // 2 - 1)]
        subset = None if everything else shown
        logs = []
        for last, history in train_in_parts(model, self.data, plan, epochs, fit=self.fit, name=name, subset=subset):
            self.histories.append(history)
            if looks:
                logs.append(log_losses(model, self.data, self.fit.runtime))
            if looks and last in (half, plan.epochs) and self._look(model, np.stack(logs)):
                return model, True
        return model, False

    def _look(self, model: nn.Module, logs: NDArray[np.float64]) -> bool:
        """Decide by what this network shows of the images that are not suspected, which it was trained on."""
        features = self.seen.features
        if self.seen.witness == "none":
            features = own_features(model, self.data, self.fit.runtime)
        seen = dataclasses.replace(self.seen, network=model, trajectories=logs, features=features)
        return self._take(seen)

    def _longer(self, shown: Tensor) -> TrainPlan:
        share = float(shown.double().mean())
        return self.plan.but(epochs=round(self.plan.epochs / max(share, 1 / _LONGEST)))

    def _adjudicate(self, model: nn.Module, shown: Tensor) -> Adjudication:
        """Let a network that was not shown the suspects judge them."""
        own = log_losses(model, self.data, self.fit.runtime)
        ruling = self.fit.runtime.first(
            adjudicate(own, self.seen, self.decisions, self.suspects, self.near, shown.numpy(), self.alpha)
        )
        self.suspects, self.near = ruling.suspects, ruling.near
        self.cleared |= ruling.cleared
        self.notes += ruling.notes
        return ruling

    def _balance(self, model: nn.Module, shown: Bools) -> None:
        """Tell the network how frequent a class is that lost images (logit adjustment)."""
        trained = self.seen.trained
        factors = lost(
            self.data.labels,
            torch.from_numpy(shown & trained),
            torch.from_numpy(~shown & trained),
            self.data.num_classes,
        )
        if bool((factors > 1).any()) and make_up(Network(model, self.data, self.fit.runtime), factors):
            names = ", ".join(self.data.classes[i] for i in (factors > 1).nonzero().flatten().tolist())
            self.notes.append(f"The network is told how frequent {names} would be without what was left out.")
