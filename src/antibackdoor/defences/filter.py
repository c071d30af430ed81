"""Filter: find the poison by how it was learned, train again without it, and let the new network judge what it misses.

Nothing is known beforehand: no trusted image, no trigger, no share, no number of targets.

1. Ordinary training records the loss of every image in every epoch. Half-way, and again at its end, every class is cut
   in two (``isolation.cuts``). Where no class falls apart, the network is finished, as undefended training makes it.
2. A class that falls apart is sharpened by the features of the network, its suspects are left out, and a network is
   trained on the rest by the same plan.
3. That network is the referee. A suspect to which it gives its own label with confidence, though it never saw it, was
   no poison and is let go. Where a whole class is let go, or another class falls apart now, a round follows.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.defences.base import Defence
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import Cut, Evidence, Network, cut_classes, penultimate, sharpened
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet, Isolation, Outcome, Verdict

__all__ = ["Filter"]

# Share of the alarm's strength from which a class is neither poisoned nor free of suspicion.
_DOUBT = 2 / 3
# The referee's mean probability for the suspects' labels: above, the whole class is let go; below, single images are.
_EASY, _WRONG = 0.9, 0.2


@dataclass(frozen=True, eq=False)
class _Look:
    """What one look at a training gave.

    Attributes:
        cuts: One a class.
        suspects: bool (N,).
    """

    cuts: dict[int, Cut]
    suspects: Tensor


@dataclass(frozen=True)
class Filter(Defence):
    """Train, cut, drop, train again; see above.

    Attributes:
        sensitivity: Divides ``alarm``: 2 raises the alarm on half the evidence, and falsely more often.
        alarm: Strength (``Cut.strength``) from which a class counts as poisoned.
        look: Share of the epochs after which it looks for the first time, above 0 and below 1.
        rounds: Most trainings after the first, at least 1.
        confident: Probability from which the referee's word for a suspect's own label counts, above 0 and below 1.

    Source:
        Ours; loss trajectories were clustered before by TellTale (NDSS 2025) and matched by BaDLoss (ICLR 2025).
        docs/log.md has the measurements behind the alarm, all on CIFAR-10 and Fashion-MNIST.
    """

    sensitivity: float = 1.0
    alarm: float = 1.5
    look: float = 0.5
    rounds: int = 3
    confident: float = 0.9

    def __post_init__(self) -> None:
        for name in ("sensitivity", "alarm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: must be a finite number above 0, got {value}")
        for name in ("look", "confident"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be above 0 and below 1, got {getattr(self, name)}")
        if self.rounds < 1:
            raise ConfigError(f"rounds: must be at least 1, got {self.rounds}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train for the first part of the plan and look once."""
        model = build_model(seeds.generator("init"))
        history = fit(model, data, Phase("look", plan, last=self._first_look(plan)))
        look = self._look_at(history, model, data, fit)
        return Outcome(model, self._isolation(look.cuts, data, look.suspects, []), (history,))

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train, and again without the suspects for as long as that changes who is suspected."""
        first = build_model(seeds.generator("init"))
        half = self._first_look(plan)
        histories = [fit(first, data, Phase("look", plan, last=half))]
        look = self._look_at(histories[0], first, data, fit)
        to_finish = half < plan.epochs
        if to_finish and not bool(look.suspects.any()):
            histories.append(fit(first, data, Phase("train", plan, first=half)))
            look, to_finish = self._look_at(_joined(histories), first, data, fit), False
        model, suspects, cuts, words = first, look.suspects, look.cuts, list[str]()
        for number in range(1, self.rounds + 1):
            if not bool(suspects.any()):
                break
            model = build_model(seeds.generator("init"))
            histories.append(fit(model, data, Phase(f"retrain {number}", plan), subset=~suspects))
            cleared, whole = self._cleared(suspects, model, data, fit)
            again = self._look_at(histories[-1], model, data, fit, kept=~suspects)
            words.append(
                f"Round {number}: a network trained without {int(suspects.sum())} suspects gives "
                f"{int(cleared.sum())} of them their own label with confidence, so they are let go; it raises "
                f"{int(again.suspects.sum())} new suspects."
            )
            cuts = {**cuts, **{label: cut for label, cut in again.cuts.items() if bool(again.suspects[cut.rows].any())}}
            suspects = (suspects & ~cleared) | again.suspects
            if not whole and not bool(again.suspects.any()):
                break
        if not bool(suspects.any()) and model is not first:
            model = first
            if to_finish:
                histories.append(fit(first, data, Phase("train", plan, first=half)))
        return Outcome(model, self._isolation(cuts, data, suspects, words), tuple(histories))

    def _first_look(self, plan: TrainPlan) -> int:
        return max(1, round(self.look * plan.epochs))

    def _look_at(
        self, history: History, model: nn.Module, data: ImageSet, fit: Fit, kept: Tensor | None = None
    ) -> _Look:
        """Cut every class of the images that were kept, and suspect what was learned all at once."""
        rows = torch.arange(len(data)) if kept is None else kept.nonzero().squeeze(1)
        held_out = None if history.held_out is None else torch.from_numpy(history.held_out)[rows]
        losses = torch.from_numpy(history.losses)[:, rows]
        cuts = cut_classes(Evidence(losses, data.labels[rows], data.num_classes, held_out))
        suspects = torch.zeros(len(data), dtype=torch.bool)
        for cut in cuts:
            if cut.strength >= self.alarm / self.sensitivity:
                members = cut.suspicion > 0.5
                features = _features(Network(model, data, fit.runtime), rows[cut.rows])
                suspects[rows[cut.rows]] = members if features is None else sharpened(features, members)
        return _Look({cut.label: dataclasses.replace(cut, rows=rows[cut.rows]) for cut in cuts}, suspects)

    def _cleared(self, suspects: Tensor, referee: nn.Module, data: ImageSet, fit: Fit) -> tuple[Tensor, bool]:
        """Return the suspects to let go, bool (N,), and whether a whole class of them is.

        Poison with a wrong label is rejected by a network that has not learned the trigger. Clean-label poison carries
        the right label, so that single images of it pass: where the suspects of a class are neither clearly wrong nor
        clearly easy, none is let go.
        """
        own = logits_of(referee, data, fit.runtime).softmax(1).gather(1, data.labels[:, None]).squeeze(1)
        cleared, whole = torch.zeros_like(suspects), False
        for label in data.labels[suspects].unique():
            rows = suspects & (data.labels == label)
            mean = float(own[rows].mean())
            if mean >= _EASY:
                cleared |= rows
                whole = True
            elif mean <= _WRONG:
                cleared |= rows & (own >= self.confident)
        return cleared, whole

    def _isolation(self, cuts: dict[int, Cut], data: ImageSet, flagged: Tensor, words: list[str]) -> Isolation:
        scores = torch.zeros(len(data))
        for cut in cuts.values():
            scores[cut.rows] = (cut.suspicion * cut.strength).float()
        # What is flagged comes first, whatever brought it there.
        scores = scores + flagged.float() * (scores.max() + 1)
        limit = self.alarm / self.sensitivity
        poisoned = [label for label in cuts if bool(flagged[data.labels == label].any())]
        doubtful = [c.label for c in cuts.values() if c.strength >= _DOUBT * limit and c.label not in poisoned]
        sentences = []
        for label in poisoned:
            count = int((flagged & (data.labels == label)).sum())
            sentences.append(
                f"Class {data.classes[label]!r} is poisoned, about {count} images: it holds two kinds of images, one "
                f"of which was learned all at once ({_figures(cuts[label])}, alarm at {limit:.2f})."
            )
        for label in doubtful:
            sentences.append(
                f"Class {data.classes[label]!r} is not above suspicion ({_figures(cuts[label])}, alarm at {limit:.2f})."
            )
        if not sentences:
            top = max(cuts.values(), key=lambda cut: cut.strength, default=None)
            nearest = f"; nearest is {data.classes[top.label]!r} ({_figures(top)}, alarm at {limit:.2f})" if top else ""
            sentences.append(f"No class falls apart into two kinds of images{nearest}.")
        verdict: Verdict = "poisoned" if poisoned else "undecided" if doubtful or not cuts else "no sign of poison"
        return Isolation(scores, flagged, verdict, (*sentences, *words))


def _figures(cut: Cut) -> str:
    return f"strength {cut.strength:.2f}: gain {cut.gain:.2f} times lead {cut.lead:.1f}"


def _features(network: Network, rows: Tensor) -> Tensor | None:
    """Return the penultimate features of some images, or None where the network has no linear layer."""
    try:
        measure = penultimate(network)
    except ConfigError:
        return None
    return network.measure([measure], rows)[0]


def _joined(histories: list[History]) -> History:
    return dataclasses.replace(histories[0], losses=np.concatenate([history.losses for history in histories]))
