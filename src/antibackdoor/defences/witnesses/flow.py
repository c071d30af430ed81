"""The flow of the default defence: observe, decide, train without the suspects, and let that network judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from antibackdoor.defences.balance import lost, make_up
from antibackdoor.defences.encoding import encoded_by, features_by
from antibackdoor.defences.witnesses.crosscheck import Adjudication, Judged, adjudicate
from antibackdoor.defences.witnesses.decide import Decision, decide
from antibackdoor.defences.witnesses.limit import Limit, detection_limit
from antibackdoor.defences.witnesses.observe import Seen, observe
from antibackdoor.defences.witnesses.words import isolation_of
from antibackdoor.isolation import Network
from antibackdoor.models import BuildModel
from antibackdoor.models.encoders import Encoder
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet, Outcome

__all__ = ["ROUNDS", "Search"]

Bools = NDArray[np.bool_]
# Trainings after the detector's, where the network that one gives names more suspects.
ROUNDS = 2
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
        notes: A sentence for what was done after the decision.
        seen: What the detector and the encoder showed.
        decision: What that comes to.
        suspects: bool (N,).
        near: bool (N,), the suspects and what may belong to them.
        model: The network that is asked for, once it is trained.
        judged: A network that was not shown the suspects has judged them.
    """

    data: ImageSet
    build_model: BuildModel
    fit: Fit
    plan: TrainPlan
    seeds: Seeds
    alpha: float
    encoder: Encoder | None
    histories: list[History] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: Seen = field(init=False)
    decision: Decision = field(init=False)
    suspects: Bools = field(init=False)
    near: Bools = field(init=False)
    model: nn.Module | None = None
    judged: bool = False

    def __post_init__(self) -> None:
        self.suspects, self.near = np.zeros((2, len(self.data)), dtype=bool)

    def look_with_detector(self) -> None:
        """Train the detector, ask the encoder, and decide."""
        self.seen, histories = observe(self.data, self.encoder, fit=self.fit, seeds=self.seeds)
        self.histories += histories
        # Many small systems of equations, at which several threads take longer than one.
        with threadpool_limits(limits=1, user_api="blas"):
            decision = decide(self.seen, self.alpha)
        # All processes must leave out the same images.
        self.decision = self.fit.runtime.first(decision)
        self.suspects, self.near = self.decision.suspects.copy(), self.decision.near.copy()

    def train(self) -> None:
        """Train the network that is asked for without the suspects, and once more where it names others."""
        for number in range(ROUNDS):
            shown = torch.from_numpy(~self.near)
            self.model = self._train_once(number, shown)
            if shown.all() or not self._adjudicate(self.model).changes:
                break
        else:
            self.notes.append("The last network names others still, which no further training left out.")
        if self.model is not None and not shown.all():
            self._balance(self.model, shown.numpy())

    def outcome(self, *, scanned: bool) -> Outcome:
        """Return the network, the verdict and what every training left.

        Args:
            scanned: The detector alone has looked.
        """
        # Where nothing was left out, the network that was trained judged nothing.
        alone = scanned or not self.judged
        isolation = isolation_of(
            self.seen, self.decision, self.suspects, tuple(self.notes), scanned=alone, limit=self._limit()
        )
        model = self.seen.network if self.model is None else self.model
        encoded = None
        if self.encoder is not None:
            encoded = encoded_by(self.encoder, self.data, self.fit.runtime, self.seen.features)
        return Outcome(model, isolation, tuple(self.histories), encoded)

    def _limit(self) -> Limit | None:
        """Return what would have been found, where nothing was."""
        if self.suspects.any() or not self.decision.accusations:
            return None

        features_of = partial(features_by, self.encoder, self.seen.network, runtime=self.fit.runtime)
        with threadpool_limits(limits=1, user_api="blas"):
            return self.fit.runtime.first(detection_limit(self.seen, features_of, self.alpha))

    def _train_once(self, number: int, shown: Tensor) -> nn.Module:
        """Train one network; the first that sees everything has the bits of ordinary training."""
        everything = bool(shown.all())
        model = self.build_model(self.seeds.generator("init"))
        plan = self.plan if everything else self._longer(shown)
        phase = Phase("train" if everything else f"retrain {number}", plan)
        self.histories.append(self.fit(model, self.data, phase, subset=None if everything else shown))
        return model

    def _longer(self, shown: Tensor) -> TrainPlan:
        share = float(shown.double().mean())
        return self.plan.but(epochs=round(self.plan.epochs / max(share, 1 / _LONGEST)))

    def _adjudicate(self, model: nn.Module) -> Adjudication:
        """Let a network that was not shown the suspects judge them."""
        logits = logits_of(model, self.data, self.fit.runtime)
        own = (-ce(logits, self.data.labels).double()).exp().numpy()
        judged = Judged(own, logits.argmax(1).numpy())
        ruling = self.fit.runtime.first(adjudicate(judged, self.seen, self.decision, self.suspects, self.near))
        self.judged = True
        self.suspects, self.near = ruling.suspects & self.seen.open, ruling.near & self.seen.open
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
