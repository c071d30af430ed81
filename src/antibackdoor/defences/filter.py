"""Filter: find the poison by how it was learned, train again without it, and let the new network judge what it misses.

Nothing is known beforehand: no trusted image, no trigger, no share, no number of targets.

1. Ordinary training records the loss of every image in every epoch. Half-way, and again at its end, every class is cut
   in two (``isolation.cuts``). Where no class falls apart, the network is finished, as undefended training makes it.
2. Of a class that falls apart, the part that was learned all at once is suspected, and what looks like it to the
   network. A network is trained on the rest by the same plan.
3. That network is the referee. A suspect to which it gives its own label with confidence, though it never saw it, was
   no poison and is let go; an image that it rejects, though it was shown it and the first network was certain, is
   suspected too. Where that changes much, or another class falls apart now, another round follows.
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
from antibackdoor.isolation import (
    Cut,
    Evidence,
    Network,
    cut_classes,
    penultimate,
    sharpened,
    with_planted_copies,
)
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet, Isolation, Outcome, Verdict

__all__ = ["Filter"]

# What the alarm is multiplied by at the first look.
_EARLY = 1.5
# Responsibility from which the losses alone make a suspect, whatever the features say.
_SURE = 0.9
# Share of the alarm's strength from which a class is neither poisoned nor free of suspicion.
_DOUBT = 0.9
# Gain from which a class is not above suspicion, whichever part fell further: images with wrong labels that were not
# learned yet look like that.
_APART = 0.8
# The referee's median probability for the suspects' labels: above, the class may be let go; below, single images are.
_EASY, _WRONG = 0.9, 0.1
# Shares of the set that the planted control tries, and the share of the copies that must be found.
_CONTROLS, _FOUND = (0.02, 0.01, 0.005, 0.002), 0.9
# Times the alarm from which a class is not let go, however easy its suspects are.
_STRONG = 2.0
# Share of the suspects of a class that another round must bring to be worth its training.
_WORTH = 0.05


@dataclass(frozen=True, eq=False)
class _Look:
    """What one look at a training gave.

    Attributes:
        cuts: One a class.
        suspects: bool (N,).
        aside: bool (N,), the suspects and what may belong to them: a little poison that stays in the training teaches
            the backdoor again, and its network would then speak for all the rest.
    """

    cuts: dict[int, Cut]
    suspects: Tensor
    aside: Tensor


@dataclass(frozen=True)
class Filter(Defence):
    """Ordinary training, then another without what was learned all at once, which judges what was left out.

    Attributes:
        sensitivity: Divides ``alarm``: 2 raises the alarm on half the evidence, and falsely more often.
        alarm: Strength (``Cut.strength``) from which a class counts as poisoned at the end of a training; at the first
            look, where figures are noisier, half as much again.
        look: Share of the epochs after which it looks for the first time, above 0 and below 1.
        fewest: Epochs that a look needs; a training that has fewer leaves the verdict open.
        latest: Epochs after which the first look comes at the latest, at least ``fewest``.
        rounds: Most trainings after the first, at least 1.
        confident: Probability from which the referee's word for a suspect's own label counts, above 0 and below 1.
        control: State the detection limit as well: plant copies with a trigger of ours, in 2, 1, 0.5 and 0.2 % of the
            set, and train and look again for each. It costs one training for each share that is found, and one more;
            nothing of it goes into the result.

    Source:
        Ours; loss trajectories were clustered before by TellTale (NDSS 2025) and matched by BaDLoss (ICLR 2025).
        docs/log.md has the measurements behind the alarm, all on CIFAR-10 and Fashion-MNIST.
    """

    sensitivity: float = 1.0
    alarm: float = 0.5
    look: float = 0.5
    fewest: int = 5
    latest: int = 10
    rounds: int = 3
    confident: float = 0.9
    control: bool = False

    def __post_init__(self) -> None:
        for name in ("sensitivity", "alarm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: must be a finite number above 0, got {value}")
        for name in ("look", "confident"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be above 0 and below 1, got {getattr(self, name)}")
        for name, least in (("fewest", 1), ("latest", self.fewest), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least}, got {getattr(self, name)}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train for the first part of the plan and look once."""
        model = build_model(seeds.generator("init"))
        history = fit(model, data, Phase("look", plan, last=self._first_look(plan), part_of="train"))
        look = self._look_at(history, model, data, fit, early=True)
        limit, planted = self._limit(data, build_model, fit, plan, self._first_look(plan), seeds)
        isolation = self._isolation(look.cuts, data, look.suspects, limit, early=True, epochs=len(history.losses))
        return Outcome(model, isolation, (history, *planted))

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train, and again without the suspects for as long as that changes who is suspected."""
        first = build_model(seeds.generator("init"))
        half = self._first_look(plan)
        histories = [fit(first, data, Phase("look", plan, last=half, part_of="train"))]
        look = self._look_at(histories[0], first, data, fit, early=half < plan.epochs)
        to_finish = half < plan.epochs
        if to_finish and not bool(look.suspects.any()):
            histories.append(fit(first, data, Phase("train", plan, first=half, part_of="train")))
            look, to_finish = self._look_at(_joined(histories), first, data, fit), False
        early = to_finish
        model, cuts, words = first, look.cuts, list[str]()
        suspects, aside = look.suspects, look.aside
        kept, let_go = torch.ones_like(suspects), torch.zeros_like(suspects)
        before = _own_probability(first, data, fit) if bool(suspects.any()) else torch.empty(0)
        for number in range(1, self.rounds + 1):
            if not bool(suspects.any()):
                break
            kept, model = ~aside, build_model(seeds.generator("init"))
            histories.append(fit(model, data, Phase(f"retrain {number}", plan), subset=kept))
            after = _own_probability(model, data, fit)
            again = self._look_at(histories[-1], model, data, fit, kept=kept)
            new = again.suspects & ~let_go
            free = self._let_go(suspects, new, cuts, data.labels, after, early=early)
            cleared = suspects & (free | self._cleared(suspects, data.labels, after))
            missed = self._missed(suspects & ~free, data.labels, before, after)
            words.append(
                f"Round {number}: a network was trained without {int(aside.sum())} images, {int(suspects.sum())} of "
                f"them suspects. It gives {int(cleared.sum())} suspects their own label with confidence (let go) and "
                f"rejects {int(missed.sum())} others that the first one was certain of (suspected); {int(new.sum())} "
                "more were learned all at once (suspected)."
            )
            fresh = {label: cut for label, cut in again.cuts.items() if bool(new[cut.rows].any())}
            cuts = {
                label: fresh.get(label, cut) if not bool(aside[cut.rows].any()) else cut for label, cut in cuts.items()
            }
            worth = _WORTH * int(suspects.sum())
            settled = int((missed & kept).sum()) <= worth and not bool(new.any()) and not bool(free.any())
            let_go |= free
            suspects = (suspects & ~cleared) | missed | new
            aside = (aside & ~free) | suspects | (again.aside & ~let_go)
            if settled:
                break
        if not bool(suspects.any()) and model is not first:
            model, kept = first, torch.ones_like(suspects)
            if to_finish:
                histories.append(fit(first, data, Phase("train", plan, first=half, part_of="train")))
        if bool((suspects & kept).any()):
            words.append(f"The network was trained on {int((suspects & kept).sum())} of the flagged images.")
        limit, planted = self._limit(data, build_model, fit, plan, plan.epochs, seeds)
        isolation = self._isolation(cuts, data, suspects, [*words, *limit], early=early, epochs=plan.epochs)
        return Outcome(model, isolation, (*histories, *planted))

    def _limit(
        self, data: ImageSet, build_model: BuildModel, fit: Fit, plan: TrainPlan, epochs: int, seeds: Seeds
    ) -> tuple[list[str], list[History]]:
        """Return the detection limit in words, and what the trainings for it left; nothing without ``control``."""
        histories: list[History] = []
        found: list[str] = []
        for share in _CONTROLS if self.control else ():
            generator = seeds.generator(f"control {share}")
            longer, planted = with_planted_copies(data, max(1, round(share * len(data))), generator)
            model = build_model(seeds.generator("init"))
            history = fit(model, longer, Phase(f"control {100 * share:g}", plan, last=epochs))
            suspects = self._look_at(history, model, longer, fit, early=epochs < plan.epochs).suspects
            histories.append(dataclasses.replace(history, losses=history.losses[:, : len(data)]))
            recall = float(suspects[planted].float().mean())
            if recall < _FOUND:
                found.append(f"of {100 * share:g} % ({int(planted.sum())} images) {100 * recall:.0f} % were found")
                break
            found.append(f"of {100 * share:g} % all but {100 * (1 - recall):.0f} % were found")
        if not found:
            return [], []
        return [f"Planted control, copies with a patch of ours: {'; '.join(found)}."], histories

    def _first_look(self, plan: TrainPlan) -> int:
        return min(max(self.fewest, min(self.latest, round(self.look * plan.epochs))), plan.epochs)

    def _look_at(
        self,
        history: History,
        model: nn.Module,
        data: ImageSet,
        fit: Fit,
        *,
        kept: Tensor | None = None,
        early: bool = False,
    ) -> _Look:
        """Cut every class of the images that were kept, and suspect what was learned all at once."""
        rows = torch.arange(len(data)) if kept is None else kept.nonzero().squeeze(1)
        held_out = None if history.held_out is None else torch.from_numpy(history.held_out)[rows]
        losses = torch.from_numpy(history.losses)[:, rows]
        cuts = cut_classes(Evidence(losses, data.labels[rows], data.num_classes, held_out))
        suspects, aside = torch.zeros(2, len(data), dtype=torch.bool)
        for cut in cuts:
            if cut.strength >= self._alarm_at(early) and len(losses) >= self.fewest:
                members = cut.suspicion > 0.5
                features = _features(Network(model, data, fit.runtime), rows[cut.rows])
                alike = members if features is None else sharpened(features, members)
                suspects[rows[cut.rows]] = alike | (cut.suspicion > _SURE)
                aside[rows[cut.rows]] = alike | members
        return _Look({cut.label: dataclasses.replace(cut, rows=rows[cut.rows]) for cut in cuts}, suspects, aside)

    def _let_go(
        self, suspects: Tensor, new: Tensor, cuts: dict[int, Cut], labels: Tensor, own: Tensor, *, early: bool
    ) -> Tensor:
        """Return the images of the classes whose suspects were no poison, bool (N,).

        Easy images of a clean class are accepted by a network that never saw them. So is poison, by a network that was
        shown some of it: a class stays where more suspects turned up in it, or where the evidence was strong.
        """
        free = torch.zeros_like(suspects)
        for label in labels[suspects].unique():
            of_class = labels == label
            easy = float(own[suspects & of_class].median()) >= _EASY
            weak = cuts[int(label)].strength < _STRONG * self._alarm_at(early)
            if easy and weak and not bool(new[of_class].any()):
                free |= of_class
        return free

    def _cleared(self, suspects: Tensor, labels: Tensor, own: Tensor) -> Tensor:
        """Return the single suspects to let go, bool (N,).

        Poison with a wrong label is rejected by a network that has not learned the trigger. Clean-label poison carries
        the right label, so that single images of it pass: only where the suspects of a class are clearly wrong is one
        that is accepted let go.
        """
        cleared = torch.zeros_like(suspects)
        for label in labels[suspects].unique():
            rows = suspects & (labels == label)
            if float(own[rows].median()) <= _WRONG:
                cleared |= rows & (own >= self.confident)
        return cleared

    def _missed(self, suspects: Tensor, labels: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Return the images of the suspects' classes that only a network with the poison accepts, bool (N,)."""
        beside = torch.isin(labels, labels[suspects].unique()) & ~suspects
        return beside & (before >= self.confident) & (after < 0.5)

    def _alarm_at(self, early: bool) -> float:
        return (_EARLY if early else 1.0) * self.alarm / self.sensitivity

    def _isolation(
        self, cuts: dict[int, Cut], data: ImageSet, flagged: Tensor, words: list[str], *, early: bool, epochs: int
    ) -> Isolation:
        scores = torch.zeros(len(data))
        for cut in cuts.values():
            scores[cut.rows] = (cut.suspicion * cut.strength).float()
        # What is flagged comes first, whatever brought it there.
        scores = scores + flagged.float() * (scores.max() + 1)
        limit = self._alarm_at(early)
        poisoned = [label for label in cuts if bool(flagged[data.labels == label].any())]
        doubtful = [
            cut.label
            for cut in cuts.values()
            if cut.label not in poisoned and (cut.strength >= _DOUBT * limit or cut.gain >= _APART / self.sensitivity)
        ]
        sentences = []
        for label in poisoned:
            count = int((flagged & (data.labels == label)).sum())
            sentences.append(
                f"Class {data.classes[label]!r} is poisoned, about {count} images: it holds two kinds of images, one "
                f"of which was learned all at once ({_figures(cuts[label])}, alarm at {limit:.2f})."
            )
        for label in doubtful:
            sentences.append(
                f"Class {data.classes[label]!r} is not above suspicion ({_figures(cuts[label])}, alarm at "
                f"{limit:.2f}): it may hold images with wrong labels that were not learned yet."
            )
        blind = not cuts or epochs < self.fewest
        if blind:
            why = f"no class has 20 images, or the training had under {self.fewest} epochs"
            sentences.insert(0, f"Too little to look at: {why}.")
        elif not sentences:
            top = max(cuts.values(), key=lambda cut: cut.strength)
            sentences.append(
                f"No class falls apart into two kinds of images; nearest is {data.classes[top.label]!r} "
                f"({_figures(top)}, alarm at {limit:.2f})."
            )
        verdict: Verdict = "poisoned" if poisoned else "undecided" if doubtful or blind else "no sign of poison"
        return Isolation(scores, flagged, verdict, (*sentences, *words))


def _figures(cut: Cut) -> str:
    return f"strength {cut.strength:.2f}; gain {cut.gain:.2f}, votes {cut.votes:.2f}, fall {cut.fall:.1f}"


def _own_probability(model: nn.Module, data: ImageSet, fit: Fit) -> Tensor:
    """Return the probability that the network gives each image's own label, float (N,)."""
    return logits_of(model, data, fit.runtime).softmax(1).gather(1, data.labels[:, None]).squeeze(1)


def _features(network: Network, rows: Tensor) -> Tensor | None:
    """Return the penultimate features of some images, or None where the network has no linear layer."""
    try:
        measure = penultimate(network)
    except ConfigError:
        return None
    return network.measure([measure], rows)[0]


def _joined(histories: list[History]) -> History:
    return dataclasses.replace(histories[0], losses=np.concatenate([history.losses for history in histories]))
