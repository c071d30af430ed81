"""One search for poison by the defence ``filter``: what was trained so far, who is suspected, and what follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.defences.balance import lost, make_up
from antibackdoor.defences.looker import Looker, copies_of
from antibackdoor.defences.planted import detection_limit
from antibackdoor.defences.suspects import learn_relabelled, unlearn
from antibackdoor.errors import NonFiniteLossError
from antibackdoor.isolation import (
    FULL_CLASS,
    AnyCut,
    Look,
    Network,
    agree,
    ruling,
    strongest,
    verdict_of,
)
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet, Isolation, Outcome

__all__ = ["Asked", "Rules", "Search"]

# Times the alarm of its look from which a class is not let go, however easy its suspects are; and from which a class
# that the first network left alone is accused by a second.
_EARLY_STRONG, _LATE_STRONG, _LATER = 1.4, 2.0, 1.4
# Names of small classes that the verdict gives.
_NAMED = 5
# Phases of the first network, of the one that is asked for where that is another, and of those in between.
_LOOK, _TRAIN, _ASKED, _RETRAIN = "look", "train", "final", "retrain"
# What makes another round worth its training: new suspects, as a share of those there are, or images that come back, as
# a share of the set.
_WORTH, _WORTH_BACK = 0.05, 0.02
# Times the epochs of ordinary training that a network takes at most which is shown few images.
_LONGEST = 3.0


@dataclass(frozen=True)
class Rules:
    """How a search goes on after a look; ``Filter`` says more of each.

    Attributes:
        rounds: Most trainings after the first that are looked at, at least 1.
        confident: Probability from which the referee's word for a suspect's own label counts, above 0 and below 1.
        referee: Let the network trained without the suspects judge them.
        control: State the detection limit as well.
    """

    rounds: int
    confident: float
    referee: bool
    control: bool


@dataclass(frozen=True, eq=False)
class Asked:
    """The network that is asked for, where a search is made with another (``defences.detector``).

    Attributes:
        build_model: Builds it.
        plan: Of its ordinary training.
        detector: Name of the other.
    """

    build_model: BuildModel
    plan: TrainPlan
    detector: str


@dataclass(eq=False)
class Search:
    """One search for poison: what was trained so far, and who is suspected.

    Attributes:
        looker: Looks at the trainings.
        rules: How it goes on after a look.
        data: The set.
        build_model: Builds a network.
        fit: The training loop.
        plan: Of ordinary training.
        seeds: The run's streams.
        asked: The network that is asked for, where ``build_model`` builds another to look with.
        first: The network that is trained on everything.
        model: The last one that was trained.
        histories: Of every training so far.
        words: A sentence a round.
        cuts: The evidence on each class, by label.
        suspects: bool (N,).
        aside: bool (N,), what the next network is not shown.
        kept: bool (N,), what the last network was shown.
        let_go: bool (N,), classes that are not to be suspected again.
        spared: bool (N,), who would be suspected if no person vouched for them.
        half: Epochs of the first network at its first look.
        finished: The first network has had all of its epochs.
    """

    looker: Looker
    rules: Rules
    data: ImageSet
    build_model: BuildModel
    fit: Fit
    plan: TrainPlan
    seeds: Seeds
    asked: Asked | None = None
    histories: list[History] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    cuts: dict[int, tuple[AnyCut, ...]] = field(default_factory=dict)
    first: nn.Module = field(init=False)
    model: nn.Module = field(init=False)
    suspects: Tensor = field(init=False)
    aside: Tensor = field(init=False)
    kept: Tensor = field(init=False)
    let_go: Tensor = field(init=False)
    spared: Tensor = field(init=False)
    half: int = field(init=False)
    finished: bool = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.model = self._network()
        self.suspects, self.aside, self.let_go, self.spared = torch.zeros(4, len(self.data), dtype=torch.bool)
        self.kept = torch.ones(len(self.data), dtype=torch.bool)
        self.half = self.looker.first(self.plan)
        self.finished = self.half == self.plan.epochs
        self._before: Tensor | None = None
        self._seen: Tensor | None = None
        self._without: tuple[str, ...] = ()
        self._trainable = torch.ones(len(self.data), dtype=torch.bool)
        self._copies = torch.zeros_like(self._trainable)

    @property
    def suspected(self) -> bool:
        """Whether any image is."""
        return bool(self.suspects.any())

    @property
    def slow(self) -> Tensor:
        """int64, the classes whose slow part is suspected."""
        return torch.tensor(_slow_in(self.cuts), dtype=self.data.labels.dtype)

    def look_first(self) -> None:
        """Train the first part of the plan, and look."""
        history = self._train(self.first, Phase(_LOOK, self.plan, last=self.half, part_of="train"))
        self._copies = copies_of(self.data, history)
        if history.held_out is not None:
            self._trainable &= ~torch.from_numpy(history.held_out)
        found = self._look_at(history, self.first)
        self._take(found)
        self._seen = found.seen

    def look_last(self) -> None:
        """Finish the first network, and look again; who was suspected before stays so, but for the slow parts.

        What contradicts that is not suspected (``isolation.agree``), nor is a class that was let go.
        """
        if self.finished:
            return
        self._finish()
        self._before = None  # The network has learned more since.
        cuts, stays = self.cuts, ~torch.isin(self.data.labels, self.slow)
        suspects, aside = self.suspects & stays, self.aside & stays
        own = [history for history in self.histories if history.phase in (_LOOK, _TRAIN)]
        whole = dataclasses.replace(own[0], losses=np.concatenate([history.losses for history in own]))
        earlier, self._seen = self._seen, None
        self._take(self._look_at(whole, self.first, earlier=earlier))
        self.suspects, self.aside = self.suspects & ~self.let_go, self.aside & ~self.let_go
        for label in self.data.labels[suspects].unique().tolist():
            of_class = self.data.labels == label
            if not agree(suspects[of_class], self.suspects[of_class]):
                self.suspects[of_class] = self.aside[of_class] = False
                self.cuts[label] = cuts[label]
            elif bool((suspects & ~self.suspects)[of_class].any()):
                self.cuts[label] = (*cuts[label], *self.cuts.get(label, ()))
        self.suspects, self.aside = self.suspects | suspects, self.aside | aside

    def rounds(self, number: int) -> int:
        """Go on with round ``number`` for as long as that changes who is suspected; returns the next number."""
        while self.suspected and number <= self.rules.rounds:
            number += 1
            if self.round(number - 1) or not self.rules.referee:
                break
        return number

    def round(self, number: int) -> bool:
        """Train a network without the suspects, and let it judge them; returns whether little changed."""
        if self._before is None and self.rules.referee:
            self._before = self._own_probability(self.first)
        self._retrain(number)
        if self._before is None:
            return True
        labels, shown = self.data.labels, self.kept & self._trainable
        again = self._look_at(self.histories[-1], self.model, kept=self.kept)
        barely = self._barely_accused(again)
        new = again.suspects & ~self.let_go & ~barely
        stays = {label for label in self.cuts if self._sure(label)}
        stays |= set(labels[new].unique().tolist()) - set(self.slow.tolist())
        after = self._own_probability(self.model)
        judged = ruling(
            self.suspects,
            labels,
            before=self._before,
            after=after,
            confident=self.rules.confident,
            shown=shown,
            near=self.aside,
            stays=stays,
            slow=self.slow.tolist(),
        )
        judged = dataclasses.replace(judged, missed=self._spare(judged.missed))
        # The hard images of such a class were left out with its poison; they come back.
        released = judged.cleared & torch.isin(labels, self.slow)
        self.words.append(
            f"Round {number}: a network was trained without {int(self.aside.sum())} images, {int(self.suspects.sum())} "
            f"of them suspects. It gives {int(judged.cleared.sum())} suspects their own label with confidence (let go) "
            f"and rejects {int(judged.missed.sum())} others that the first one accepted (suspected); "
            f"{int((new & ~judged.missed).sum())} more stood out to it as well (suspected)."
        )
        for label, cuts in again.cuts.items():
            if bool(new[labels == label].any()):
                # What the first network showed stays evidence, but for a slow part, which is no more than slow.
                known = self.cuts.get(label, ()) if bool(self.suspects[labels == label].any()) else ()
                self.cuts[label] = (*(cut for cut in known if not cut.slow), *cuts)
            elif not bool(self.aside[labels == label].any()):
                self.cuts[label] = cuts
        worth = _WORTH * int(self.suspects.sum())
        changed = int((judged.missed & shown).sum()) > worth or int(released.sum()) > _WORTH_BACK * len(labels)
        settled = not changed and not bool(new.any()) and not bool(judged.free.any())
        # Of a class in which something else stands out now, only what was suspected before is let go.
        self.let_go |= judged.free & ~torch.isin(labels, labels[new])
        self.suspects = (self.suspects & ~judged.cleared) | judged.missed | new
        self.aside = (self.aside & ~judged.free & ~released) | self.suspects
        self.aside |= again.aside & ~self.let_go & ~barely
        return settled

    def settle(self) -> None:
        """End the search: where no suspect is left, the network is that of ordinary training."""
        if self.asked is not None:
            self._train_asked(self.asked, everything=not self.suspected)
        elif not self.suspected and self.model is not self.first:
            self.model, self.kept = self.first, torch.ones_like(self.kept)
            if not self.finished:
                self._finish()
        elif self._learned() > _WORTH * int(self.suspects.sum()):
            # The rounds were used up before what they found was left out.
            self._retrain(1 + sum(history.phase.startswith(_RETRAIN) for history in self.histories))
        shown, labels = self.kept & self._trainable, self.data.labels
        if self._learned():
            self.words.append(f"The network was trained on {self._learned()} of the flagged images.")
        absent = sorted(set(labels.unique().tolist()) - set(labels[shown].unique().tolist()))
        if absent:
            names = ", ".join(repr(self.data.classes[label]) for label in absent)
            self.words.append(f"No image of {names} was left to train on: the network does not know that class.")

    def balance(self) -> None:
        """Make up for what a class lost, where it is rarer than the others now, as clean-label poison leaves it."""
        if self.model is self.first:
            return
        shown, left_out = self.kept & self._trainable, ~self.kept & self._trainable
        factors = lost(self.data.labels, shown, left_out, self.data.num_classes)
        if not bool((factors > 1).any()) or not make_up(Network(self.model, self.data, self.fit.runtime), factors):
            return
        for label in (factors > 1).nonzero().squeeze(1).tolist():
            name, factor = self.data.classes[label], float(factors[label])
            self.words.append(
                f"Class {name!r} is rarer than the others without what was left out; the network takes it for "
                f"{factor:.1f} times as frequent as it was trained."
            )

    def unlearn(self) -> None:
        """Let the network that was trained on everything forget the suspects."""
        if self.asked is not None:
            self._train_asked(self.asked, everything=True)
        if self.suspected:
            calm = ~self.aside
            history = unlearn(self.model, self.data, self.suspects, calm, fit=self.fit, plan=self._last_plan)
            self.histories.append(history)
            self.words.append("The network was trained on all images, and then made to forget the flagged ones.")

    def relearn(self) -> None:
        """Let the last network learn suspects under the labels that it sees in them."""
        if not self.suspected or self.model is self.first:
            return
        confident = self.rules.confident
        history, count = learn_relabelled(
            self.model,
            self.data,
            self.suspects & self._trainable,
            self.kept,
            confident=confident,
            fit=self.fit,
            plan=self._last_plan,
        )
        if history is not None:
            self.histories.append(history)
            self.words.append(f"It then learned {count} of the suspects under the class that it sees in them.")

    def outcome(self, *, epochs: int) -> Outcome:
        """Return the network, the verdict, and what every training left.

        Args:
            epochs: That the first network was trained for, of which the verdict speaks: all, or of a scan ``half``.
        """
        limit, planted = self._limit(epochs) if self.rules.control else ([], [])
        blind, small = self._too_little(epochs)
        without = [f"Not looked at: {'; '.join(self._without)}."] if self._without else []
        if self.asked is not None:
            without.append(f"Looked at with {self.asked.detector} in place of the network that is to be used.")
        isolation: Isolation = verdict_of(
            self.cuts,
            self.data,
            self.suspects,
            alarm=self.looker.alarm,
            let_go=self.let_go,
            spared=self.spared,
            blind=blind,
            words=(*small, *without, *self.words, *limit),
        )
        return Outcome(self.model, isolation, (*self.histories, *planted))

    def _too_little(self, epochs: int) -> tuple[str, list[str]]:
        """Return why there was too little to look at, empty if there was not, and a sentence on classes that are small.

        The larger half of the images must be in classes in which poison can be told from what is merely rare; those
        that are held out and exact copies do not count.
        """
        if epochs < self.looker.fewest:
            return f"the training had under {self.looker.fewest} epochs", []
        sizes = torch.bincount(self.data.labels[self._trainable & ~self._copies], minlength=self.data.num_classes)
        small = (sizes > 0) & (sizes < FULL_CLASS)
        if not self.cuts or 2 * int(sizes[small].sum()) > int(sizes.sum()):
            return f"most images are in classes of under {FULL_CLASS}", []
        names = [repr(self.data.classes[label]) for label in small.nonzero().squeeze(1).tolist()]
        shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        count = "1 class has" if len(names) == 1 else f"{len(names)} classes have"
        words = f"{count} under {FULL_CLASS} images, too few to show any but the plainest poison: {shown}."
        return "", [words] if names else []

    def _network(self) -> nn.Module:
        return self.build_model(self.seeds.generator("init"))

    def _train(self, model: nn.Module, phase: Phase, *, subset: Tensor | None = None) -> History:
        """Train a network, and keep what that leaves.

        Raises:
            NonFiniteLossError: The loss is not finite; a detector's plan is its own, so the user is told which setting
                leaves it out.
        """
        try:
            history = self.fit(model, self.data, phase, subset=subset)
        except NonFiniteLossError as error:
            if self.asked is None or phase.name == _ASKED:
                raise
            raise NonFiniteLossError(
                f"{error}; this was {self.asked.detector} looking for poison, by a plan of its own: "
                "defence.detector=own looks with the network that is asked for"
            ) from error
        self.histories.append(history)
        return history

    @property
    def _last_plan(self) -> TrainPlan:
        """Of ordinary training of the network that comes out."""
        return self.plan if self.asked is None else self.asked.plan

    def _train_asked(self, asked: Asked, *, everything: bool) -> None:
        """Train the network that is asked for on what the search leaves, or as ordinary training would, to the bit."""
        self.kept = torch.ones_like(self.kept) if everything else ~self.aside
        self.model = asked.build_model(self.seeds.generator("init"))
        if everything:
            self._train(self.model, Phase(_ASKED, asked.plan, part_of="train"))
        else:
            self._train(self.model, Phase(_ASKED, self._plan_for(self.kept, asked.plan)), subset=self.kept)

    def _plan_for(self, kept: Tensor, plan: TrainPlan) -> TrainPlan:
        """Return the plan of a network that is shown some images only: it takes as many updates as ordinary training.

        Of a smaller set fewer updates would be made in as many epochs, and what is left would be learned less well; but
        three times as many epochs at most.
        """
        share = int((kept & self._trainable).sum()) / max(1, int(self._trainable.sum()))
        return plan.but(epochs=round(plan.epochs / max(share, 1 / _LONGEST)))

    def _retrain(self, number: int) -> None:
        """Train a network without what is set aside."""
        self.kept, self.model = ~self.aside, self._network()
        phase = Phase(f"{_RETRAIN} {number}", self._plan_for(self.kept, self.plan))
        self._train(self.model, phase, subset=self.kept)

    def _learned(self) -> int:
        """Return how many suspects the last network was trained on."""
        return int((self.suspects & self.kept & self._trainable).sum())

    def _finish(self) -> None:
        self._train(self.first, Phase(_TRAIN, self.plan, first=self.half, part_of="train"))
        self.finished = True

    def _look_at(
        self, history: History, model: nn.Module, *, kept: Tensor | None = None, earlier: Tensor | None = None
    ) -> Look:
        found = self.looker.look_at(
            history, model, self.data, self.fit, self.plan, kept=kept, earlier=earlier, copies=self._copies
        )
        aside = self.data.unvouched(found.aside)
        return dataclasses.replace(found, suspects=self._spare(found.suspects), aside=aside)

    def _spare(self, suspects: Tensor) -> Tensor:
        """Return those of the suspects that nobody vouches for, and remember the others."""
        left = self.data.unvouched(suspects)
        self.spared = self.spared | (suspects & ~left)
        return left

    def _take(self, look: Look) -> None:
        self.cuts, self.suspects, self.aside = look.cuts, look.suspects, look.aside
        self._without = look.without

    def _own_probability(self, model: nn.Module) -> Tensor:
        """Return the probability that a network gives each image's own label, float (N,)."""
        probabilities = logits_of(model, self.data, self.fit.runtime).softmax(1)
        return self.fit.runtime.first(probabilities.gather(1, self.data.labels[:, None]).squeeze(1))

    def _sure(self, label: int) -> bool:
        """Say whether a class is accused beyond doubt; by its slow part none is, which may be no more than hard."""
        alarm = self.looker.alarm

        def strong(cut: AnyCut) -> float:
            return (_EARLY_STRONG if cut.early else _LATE_STRONG) * alarm.at(early=cut.early)

        return any(not cut.slow and cut.strength >= strong(cut) for cut in self.cuts[label])

    def _barely_accused(self, again: Look) -> Tensor:
        """Return the images, bool (N,), of classes that the first network left alone and this one barely accuses.

        Every look at another network is another chance for a clean class, so it takes more.
        """
        sure = _LATER * self.looker.alarm.at(early=False)
        barely = [label for label, cuts in again.cuts.items() if strongest(cuts).strength < sure]
        known = self.data.labels[self.suspects].unique()
        labels = torch.tensor(barely, dtype=self.data.labels.dtype)
        return torch.isin(self.data.labels, labels) & ~torch.isin(self.data.labels, known)

    def _limit(self, epochs: int) -> tuple[list[str], list[History]]:
        """Look for planted copies as for anything else: half-way, and at the end where nothing was suspected."""

        def looked_at(longer: ImageSet, name: str) -> tuple[Tensor, list[History]]:
            model = self._network()
            start = self.fit(model, longer, Phase(f"{name} look", self.plan, last=self.half, part_of=name))
            found = self.looker.look_at(start, model, longer, self.fit, self.plan)
            if epochs == self.half or (bool(found.suspects.any()) and not _slow_in(found.cuts)):
                return found.suspects, [start]
            rest = self.fit(model, longer, Phase(name, self.plan, first=self.half, last=epochs, part_of=name))
            whole = dataclasses.replace(start, losses=np.concatenate([start.losses, rest.losses]))
            found = self.looker.look_at(whole, model, longer, self.fit, self.plan, earlier=found.seen)
            return found.suspects, [start, rest]

        return detection_limit(self.data, looked_at, self.seeds)


def _slow_in(cuts: Mapping[int, Sequence[AnyCut]]) -> list[int]:
    """Return the classes whose slow part is suspected, in order."""
    return sorted(label for label, those in cuts.items() if any(cut.slow for cut in those))
