"""Filter: find the poison by how it was learned, train again without it, and let the new network judge what it misses.

Nothing is known beforehand: no trusted image, no trigger, no share, no number of targets.

1. Ordinary training records the loss of every image in every epoch. Half-way, and again at its end, every class is cut
   in two: by these losses (``isolation.cuts``), and by what excites the network's channels (``isolation.channels``).
   Where no class falls apart, the network is finished, as undefended training makes it.
2. Of a class that falls apart, the part that was learned all at once is suspected, and what looks like it to the
   network; or the part that is foreign to all classes; or, of a class that falls apart alone, the part that is hardly
   learned yet: then the first network is finished, and those are suspected that were learned since. So is, at the end,
   what was hard half-way, was learned all the same and looks like no other class (``isolation.late``), or was learned
   when the network began to see something new in it (``isolation.news``). A network is trained on the rest by the
   same plan.
3. That network is the referee (``isolation.referee``). A suspect to which it gives its own label with confidence,
   though it never saw it, is let go; an image that it rejects, though it was shown it and the first network was certain
   of it, is suspected too. Where that changes much, or another class falls apart now, another round follows.

What the alarm is was measured with small networks. Where another is asked for, a small one does all of this, and the
other is trained once, on what it leaves (``defences.detector``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from antibackdoor.defences.base import Defence
from antibackdoor.defences.detector import AUTO, check_detector, detector_for
from antibackdoor.defences.looker import Looker
from antibackdoor.defences.search import Asked, Rules, Search
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import Alarm
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import ImageSet, Outcome

__all__ = ["Filter"]


@dataclass(frozen=True)
class Filter(Defence):
    """Ordinary training, then another without what was learned all at once, which judges what was left out.

    Attributes:
        sensitivity: Above 0; divides ``alarm``, and the gains from which a class is in doubt or has a slow part: 2
            raises the alarm on half the evidence, and falsely more often.
        suspects: What becomes of them. "drop": a network is trained without them. "unlabelled": the same, and then it
            learns those in which it sees another class under that class. "unlearn": the first network is finished and
            forgets them in place; this costs little, but there is no referee then, and no second round.
        alarm: Strength (``Cut.strength``), above 0, from which a class counts as poisoned at the end of a training. The
            first look takes twice that, since its figures are noisier; what is between is doubtful, and only the end
            tells, but for a class that is learned before all others (``Cut.first``).
        look: Share of the epochs after which it looks for the first time, above 0 and below 1.
        fewest: Epochs that a look needs, at least 1; a training that has fewer leaves the verdict open.
        latest: Epochs after which the first look comes at the latest, at least ``fewest``.
        rounds: Most trainings after the first that are looked at, at least 1. Where the last of them finds much more,
            another follows without that.
        confident: Probability from which the referee's word for a suspect's own label counts, above 0 and below 1.
        features: Sharpen the suspects by what the network makes of them (maxima of its channels, penultimate features);
            without, the losses alone decide.
        channels: Look at what excites the network's channels as well (``isolation.channels``); without, the losses
            alone raise the alarm.
        late: Look at the end for what was hard half-way, was learned all the same and looks like no other class
            (``isolation.late``), or was learned when the network began to see something new (``isolation.news``).
        referee: Let the network trained without the suspects judge them; without, the first suspects are final.
        balance: Make up for what a class lost to its own poisoned images, in the network's last layer
            (``defences.balance``); with "drop" only.
        detector: The network that looks: the name of one; "own" for the one that is asked for; "auto" for that where
            the alarm was measured with it, else WRN-16-1 (``defences.detector``). The network that is asked
            for is then trained once, on what the search leaves. A detector cannot see what it does not learn.
        control: State the detection limit as well: plant copies with a trigger of ours, in 2, 1, 0.5 and 0.2 % of the
            set, and train and look again for each until one is missed, half-way and at the end, without a referee. It
            costs a training for each share, half of one where that finds something half-way; nothing of it goes into
            the result.

    Raises:
        ConfigError: A setting is out of its range.
        UnknownNameError: No detector has that name.

    Source:
        Ours; loss trajectories were clustered before by TellTale (NDSS 2025) and matched by BaDLoss (ICLR 2025).
        docs/log.md has the measurements behind the alarm: clean trainings of CIFAR-10 and Fashion-MNIST, and one
        poisoned set of GTSRB that lies just above it.
    """

    sensitivity: float = 1.0
    suspects: Literal["drop", "unlabelled", "unlearn"] = "drop"
    alarm: float = 0.55
    look: float = 0.5
    fewest: int = 5
    latest: int = 10
    rounds: int = 3
    confident: float = 0.9
    features: bool = True
    channels: bool = True
    late: bool = True
    referee: bool = True
    balance: bool = True
    detector: str = AUTO
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
        check_detector(self.detector)

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train for the first part of the plan and look once."""
        search = self._search(data, build_model, fit, plan, seeds)
        search.look_first()
        return search.outcome(epochs=search.half)

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train, and again without the suspects for as long as that changes who is suspected."""
        search = self._search(data, build_model, fit, plan, seeds)
        search.look_first()
        if self.suspects == "unlearn" or not search.suspected or len(search.slow):
            search.look_last()
        if self.suspects == "unlearn":
            search.unlearn()
            return search.outcome(epochs=search.plan.epochs)
        number = search.rounds(1)
        if not search.suspected:
            # Whoever was suspected at the first look was let go, so there is the end of that training to look at.
            search.look_last()
            search.rounds(number)
        search.settle()
        if self.suspects == "unlabelled":
            search.relearn()
        elif self.balance:
            search.balance()
        return search.outcome(epochs=search.plan.epochs)

    def _search(self, data: ImageSet, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Search:
        looker = self.looker()
        rules = Rules(self.rounds, self.confident, self.referee, self.control)
        detector = detector_for(self.detector, build_model, data, plan)
        if detector is None:
            return Search(looker, rules, data, build_model, fit, plan, seeds)
        asked = Asked(build_model, plan, detector.name)
        return Search(looker, rules, data, detector.build_model, fit, detector.plan, seeds, asked)

    def looker(self) -> Looker:
        """Return what looks at the trainings, by these settings."""
        alarm = Alarm(self.alarm, self.sensitivity)
        return Looker(alarm, self.look, self.fewest, self.latest, self.features, self.channels, self.late)
