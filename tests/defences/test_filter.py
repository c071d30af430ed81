"""Filter: what it does with what it sees, on fabricated trainings; and that a real one can be resumed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.defences import Filter, NoDefence
from antibackdoor.defences import filter as filter_module
from antibackdoor.defences.detector import Detector, detector_for
from antibackdoor.defences.looker import Looker
from antibackdoor.errors import NonFiniteLossError, UnknownNameError
from antibackdoor.isolation import ChannelCut, Cut, Evidence, Look, cut_classes
from antibackdoor.models import WideResNet, builder_from
from antibackdoor.progress import Silent
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Trainer, TrainPlan
from antibackdoor.types import History, ImageSet

CLASSES, COUNT, TARGET, OTHER = 5, 1000, 2, 4
LABELS = torch.arange(COUNT) % CLASSES
NOBODY = torch.zeros(COUNT, dtype=torch.bool)
# 40 of the 200 images of a class.
PLANTED = (LABELS == TARGET) & (torch.arange(COUNT) < 200)
SECOND = (LABELS == OTHER) & (torch.arange(COUNT) < 200)
PLAN = TrainPlan(epochs=20)
FEATURES = 8


class Recall(nn.Module):
    """Knows the rows of the images by heart; what it says of them is what the training put into its table."""

    def __init__(self, with_head: bool = True) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(COUNT, CLASSES + FEATURES))
        self.head = nn.Linear(CLASSES + FEATURES, CLASSES) if with_head else None
        if self.head is not None:
            self.head.weight.data = torch.eye(CLASSES, CLASSES + FEATURES)
            self.head.bias.data.zero_()

    def forward(self, images):
        pixels = (images[:, 0, 0, :2] * 255).round().long()
        rows = self.table[pixels[:, 0] * 256 + pixels[:, 1]]
        return rows[:, :CLASSES] if self.head is None else self.head(rows)


class Fabricated:
    """A training loop that trains nothing: losses and probabilities come from the test.

    Attributes:
        losses: Phase name to float (20, N); "" is every other phase.
        own: Phase name to float (N,), what the network then gives the images' own labels; by default 0.95 where an
            image was shown or is clean, 0.01 elsewhere.
        marked: bool (N,), images whose features stand apart, or that by phase name.
        calls: Name, model and bool (N,) subset of each call.
    """

    def __init__(self, runtime, losses, marked=NOBODY, own=None, held_out=None):
        self.runtime, self.marked, self.held_out = runtime, marked, held_out
        self.losses = losses if isinstance(losses, dict) else {"": losses}
        self.own = own or {}
        self.calls = []
        self.epochs = {}
        self.plans = {}

    def __call__(self, model, data, phase, *, objective=None, subset=None):
        shown = torch.ones(COUNT, dtype=torch.bool) if subset is None else subset.clone()
        self.calls.append((phase.name, model, shown))
        self.epochs[phase.name] = phase.plan.epochs
        self.plans[phase.name] = phase.plan
        marked = self.marked.get(phase.name, NOBODY) if isinstance(self.marked, dict) else self.marked
        own = self.own.get(phase.name, torch.where(shown | ~marked, 0.95, 0.01))
        model.table[:, :CLASSES] = ((1 - own) / (CLASSES - 1)).log()[:, None]
        model.table[torch.arange(COUNT), data.labels] = own.log()
        generator = torch.Generator().manual_seed(0)
        model.table[:, CLASSES:] = torch.randn((COUNT, FEATURES), generator=generator)
        model.table[:, CLASSES] += 6.0 * marked
        losses = self.losses.get(phase.name, self.losses.get("")).clone()[phase.first : phase.end]
        watched = torch.zeros_like(shown) if self.held_out is None else self.held_out
        losses[:, ~shown & ~watched] = float("nan")
        held_out = None if self.held_out is None else self.held_out.numpy()
        epochs = len(losses)
        return History(phase.name, losses.numpy(), np.zeros(epochs), np.zeros(epochs), held_out=held_out)

    @property
    def phases(self):
        return [name for name, _, _ in self.calls]

    def dropped(self, phase):
        return next(~shown for name, _, shown in self.calls if name == phase)


@pytest.fixture
def data():
    images = torch.zeros((COUNT, 1, 8, 8), dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(COUNT) // 256, torch.arange(COUNT) % 256
    names = ("ant", "bee", "cat", "dog", "eel")
    return ImageSet(images, LABELS, names, tuple(str(row) for row in range(COUNT)))


@pytest.fixture
def defend(data, runtime):
    def call(losses, verb="run", defence=None, with_head=True, data=data, **rest):
        fit = Fabricated(runtime, losses, **rest)
        method = getattr(dataclasses.replace(defence or Filter(), detector="own"), verb)
        outcome = method(data, build_model=lambda _: Recall(with_head), fit=fit, plan=PLAN, seeds=Seeds(0))
        assert [history.phase for history in outcome.histories] == fit.phases
        assert len(set(fit.phases)) == len(fit.phases), "a checkpoint finds its phase by its name"
        assert bool(outcome.isolation.scores.isfinite().all())
        return outcome, fit

    return call


OF_TARGET = (LABELS == TARGET).nonzero().squeeze(1)


def by_channels(part, strength, label=TARGET, early=False):
    """A cut of that strength."""
    rows = (label == LABELS).nonzero().squeeze(1)
    return ChannelCut(label, rows, part[rows].double(), gain=strength, apart=8.0, common=0.0, early=early)


def shown(looks, flagged=None, **settings):
    """A filter that is shown these cuts, by the training that they are of, and suspects what raises the alarm.

    Args:
        looks: "look", "train" (the whole of the first network) or "retrain N" to the cuts.
        flagged: Whom it suspects instead.
        **settings: Of the filter.
    """

    class Shown(Looker):
        def look_at(self, history, model, data, fit, plan, *, kept=None, **_):
            ended = history.phase == "look" and len(history.losses) == plan.epochs
            phase = "train" if ended else history.phase
            cuts, suspects = {}, (flagged or {}).get(phase, NOBODY).clone()
            for cut in looks.get(phase, ()):
                cuts[cut.label] = (*cuts.get(cut.label, ()), cut)
                if self.alarm.raised(cut) and flagged is None:
                    suspects[cut.rows[cut.suspicion > 0.5]] = True
            suspects &= kept if kept is not None else ~NOBODY
            return Look(cuts, suspects, suspects.clone())

    class Showing(Filter):
        def looker(self):
            return Shown(**vars(super().looker()))

    return Showing(**settings)


def nearly(dropped, expected, strangers=10):
    """Whether all of these were left out, and few others: images near the border are, before the referee has spoken."""
    return bool((dropped | ~expected).all()) and int((dropped & ~expected).sum()) <= strangers


def model_of(fit, phase):
    return next(model for name, model, _ in fit.calls if name == phase)


# --- nothing there ---------------------------------------------------------------------------------------------------


def test_where_nothing_falls_apart_the_first_network_is_finished(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, NOBODY))
    assert fit.phases == ["look", "train"]
    assert [len(history.losses) for history in outcome.histories] == [10, 10]
    assert outcome.model is model_of(fit, "look") is model_of(fit, "train")
    assert all(bool(shown.all()) for _, _, shown in fit.calls)
    assert outcome.isolation.verdict == "no sign of poison"
    assert not bool(outcome.isolation.flagged.any())
    nearest, blind = outcome.isolation.evidence
    assert "nearest is" in nearest
    assert blind == "Not looked at: what excites its channels (the network has no convolution)."


@pytest.mark.parametrize(
    ("sizes", "verdict", "sentence"),
    [
        ((10, 10, 10), "undecided", "Too little to look at: most images are in classes of under 100."),
        ((60, 60, 119), "undecided", "Too little to look at: most images are in classes of under 100."),
        ((60, 60, 120), "no sign of poison", "2 classes have under 100 images, too few to show any but the plainest"),
        ((0, 99, 120), "no sign of poison", "1 class has under 100 images, too few to show any but the plainest"),
        ((100, 100, 100), "no sign of poison", None),
    ],
)
def test_classes_that_are_small_are_named_and_most_of_them_leave_the_verdict_open(
    sizes, verdict, sentence, runtime, blobs, tiny
):
    pool = blobs(360, 3, channels=1, height=16, width=16)
    own = [(pool.labels == label).nonzero().squeeze(1)[:size] for label, size in enumerate(sizes)]
    data, seeds = pool.select(torch.cat(own).sort().values), Seeds(0)
    plan = TrainPlan(epochs=6, batch_size=16, lr=0.05, schedule="constant", augment=())
    # What is asked here is what is said where nothing is found.
    method = Filter(sensitivity=1e-3)
    outcome = method.run(data, build_model=tiny(data), fit=Trainer(runtime, seeds), plan=plan, seeds=seeds)
    assert (outcome.isolation.verdict, int(outcome.isolation.flagged.sum())) == (verdict, 0)
    said = [words for words in outcome.isolation.evidence if "under 100" in words]
    assert [words.startswith(sentence) for words in said] == ([True] if sentence else [])
    if sentence and verdict != "undecided":
        small = [repr(name) for name, size in zip(data.classes, sizes, strict=True) if 0 < size < 100]
        assert said[0].endswith(f": {', '.join(small)}.")


# --- poison ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_head", [True, False])
def test_poison_is_dropped_and_a_network_trained_without_it(with_head, defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, with_head=with_head)
    assert fit.phases == ["look", "retrain 1"]
    assert nearly(fit.dropped("retrain 1"), PLANTED)
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert outcome.model is model_of(fit, "retrain 1") is not model_of(fit, "look")
    assert outcome.isolation.verdict == "poisoned"
    assert "'cat' is poisoned, about 40 images" in outcome.isolation.evidence[0]
    assert not any("'bee' is" in sentence for sentence in outcome.isolation.evidence)
    scores = outcome.isolation.scores
    assert scores[PLANTED].min() > scores[~PLANTED].max()


def test_the_scan_looks_once_at_half_of_the_training(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, PLANTED), "scan", marked=PLANTED)
    assert fit.phases == ["look"]
    assert len(outcome.histories[0].losses) == 10
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert outcome.isolation.verdict == "poisoned"


def test_the_first_look_comes_when_it_is_told_to(defend, trajectories):
    for settings, parts in (
        ({"look": 0.4}, [8, 12]),
        ({"look": 0.7}, [10, 10]),
        ({"look": 0.7, "latest": 16}, [14, 6]),
        ({"look": 0.1}, [5, 15]),
        ({"look": 0.1, "fewest": 3}, [3, 17]),
    ):
        outcome, _ = defend(trajectories(LABELS, NOBODY), defence=Filter(**settings))
        assert [len(history.losses) for history in outcome.histories] == parts
    outcome, fit = defend(trajectories(LABELS, NOBODY), defence=Filter(look=0.99, latest=20))
    assert (fit.phases, len(outcome.histories[0].losses)) == (["look"], 20)


def test_poison_that_is_learned_late_is_found_at_the_end(defend, trajectories):
    late = trajectories(LABELS, PLANTED, learned_at=14)
    late[:10] = trajectories(LABELS, NOBODY)[:10]
    outcome, fit = defend(late, marked=PLANTED)
    assert fit.phases == ["look", "train", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert outcome.isolation.verdict == "poisoned"
    assert outcome.model is model_of(fit, "retrain 1")


def test_two_targets_are_found_at_once(defend, trajectories):
    both = PLANTED | SECOND
    outcome, fit = defend(trajectories(LABELS, both), marked=both)
    assert fit.phases == ["look", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, both)
    assert "'cat' is poisoned, about 40" in outcome.isolation.evidence[0]
    assert "'eel' is poisoned, about 40" in outcome.isolation.evidence[1]


def test_what_falls_apart_only_without_the_first_poison_needs_another_round(defend, trajectories):
    losses = {"": trajectories(LABELS, PLANTED), "retrain 1": trajectories(LABELS, SECOND)}
    both = PLANTED | SECOND
    outcome, fit = defend({**losses, "retrain 2": trajectories(LABELS, NOBODY)}, marked=both)
    assert fit.phases == ["look", "retrain 1", "retrain 2"]
    assert nearly(fit.dropped("retrain 1"), PLANTED)
    assert nearly(fit.dropped("retrain 2"), both, strangers=20)
    assert torch.equal(outcome.isolation.flagged, both)
    assert outcome.model is model_of(fit, "retrain 2")


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_bound_the_trainings(rounds, defend, trajectories):
    # In every round another class falls apart.
    parts = [(label == LABELS) & (torch.arange(COUNT) < 200) for label in range(CLASSES)]
    names = ("look", "retrain 1", "retrain 2", "retrain 3", "retrain 4")
    losses = {name: trajectories(LABELS, part) for name, part in zip(names, parts, strict=True)}
    outcome, fit = defend(losses, marked=sum(parts).bool(), defence=Filter(rounds=rounds))
    flagged = sum(parts[: rounds + 1]).bool()
    assert fit.phases == [*names[: rounds + 1], f"retrain {rounds + 1}"], "what the last round found is left out"
    assert torch.equal(outcome.isolation.flagged, flagged)
    assert outcome.model is model_of(fit, f"retrain {rounds + 1}")
    assert bool((fit.dropped(f"retrain {rounds + 1}") | ~flagged).all())


@pytest.mark.parametrize("rounds", [1, 3])
def test_no_network_comes_out_that_learned_what_the_end_of_the_first_training_showed(rounds, defend, trajectories):
    """The suspects of the first look were let go; the rounds may be used up by then."""
    looks = {"look": [by_channels(PLANTED, 1.2, early=True)], "train": [by_channels(SECOND, 5.0, OTHER)]}
    own = {"retrain 1": torch.full((COUNT,), 0.95)}
    outcome, fit = defend(trajectories(LABELS, NOBODY), defence=shown(looks, rounds=rounds), own=own)
    assert fit.phases == ["look", "retrain 1", "train", "retrain 2"]
    assert torch.equal(outcome.isolation.flagged, SECOND)
    assert outcome.model is model_of(fit, "retrain 2")
    assert torch.equal(fit.dropped("retrain 2"), SECOND)


def test_an_easy_part_of_a_class_around_which_the_network_sees_no_gap_is_let_be(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, PLANTED))
    assert fit.phases == ["look", "train"]
    assert not bool(outcome.isolation.flagged.any())
    assert outcome.isolation.verdict == "no sign of poison"
    without, _ = defend(trajectories(LABELS, PLANTED), defence=Filter(features=False))
    assert bool(without.isolation.flagged[PLANTED].all()), "the losses alone cannot know"


def test_copies_of_a_few_images_are_no_poison(defend, trajectories, data):
    copied = data.images.clone()
    rows = PLANTED.nonzero().squeeze(1)
    copied[rows] = data.images[rows[:4]].repeat(len(rows) // 4, 1, 1, 1)
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, data=dataclasses.replace(data, images=copied))
    assert fit.phases == ["look", "train"]
    assert not bool(outcome.isolation.flagged.any())


# --- the referee -----------------------------------------------------------------------------------------------------


def barely_alarmed(losses, epochs=10, label=TARGET, times=1.2):
    """A filter for which one class is that many times above the alarm, which is twice as much at a first look."""
    strength = cut_classes(Evidence(losses[:epochs], LABELS, CLASSES))[label].strength
    return Filter(alarm=strength / times / (2 if epochs < len(losses) else 1))


def test_a_class_with_strong_evidence_is_not_let_go(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, own={"retrain 1": torch.full((COUNT,), 0.97)})
    assert fit.phases == ["look", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert outcome.isolation.verdict == "poisoned"


def test_a_class_where_more_turns_up_is_not_let_go(defend, trajectories):
    missed = PLANTED & (PLANTED.cumsum(0) % 2 == 0)
    losses = {"look": trajectories(LABELS, PLANTED & ~missed), "retrain 1": trajectories(LABELS, missed)}
    losses["retrain 2"] = trajectories(LABELS, NOBODY)
    easy = torch.full((COUNT,), 0.97)
    own = {"retrain 1": easy, "retrain 2": torch.where(PLANTED, 0.01, 0.97)}
    marked = {"look": PLANTED & ~missed, "retrain 1": missed}
    outcome, fit = defend(losses, marked=marked, own=own, defence=barely_alarmed(losses["look"], times=1.3))
    assert fit.phases[:3] == ["look", "retrain 1", "retrain 2"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)


def test_a_cluster_that_the_referee_finds_easy_is_let_go_as_a_whole(defend, trajectories):
    easy = {"retrain 1": torch.full((COUNT,), 0.97)}
    losses = trajectories(LABELS, PLANTED)
    outcome, fit = defend(losses, marked=PLANTED, own=easy, defence=barely_alarmed(losses))
    assert fit.phases == ["look", "retrain 1", "train"]
    assert outcome.model is model_of(fit, "look") is model_of(fit, "train")
    assert len(outcome.histories[-1].losses) == 10
    assert not bool(outcome.isolation.flagged.any())
    assert outcome.isolation.verdict == "undecided"
    assert any("(let go)" in sentence for sentence in outcome.isolation.evidence)


def test_a_network_that_was_finished_is_not_finished_again(defend, trajectories):
    late = trajectories(LABELS, PLANTED, learned_at=14)
    late[:10] = trajectories(LABELS, NOBODY)[:10]
    easy = {"retrain 1": torch.full((COUNT,), 0.97)}
    outcome, fit = defend(late, marked=PLANTED, own=easy, defence=barely_alarmed(late, epochs=20))
    assert fit.phases == ["look", "train", "retrain 1"]
    assert outcome.model is model_of(fit, "look")
    assert not bool(outcome.isolation.flagged.any())


def test_one_class_is_let_go_and_the_other_is_not(defend, trajectories):
    own = torch.where(PLANTED, 0.01, 0.97)
    losses = {"": trajectories(LABELS, PLANTED | SECOND), "retrain 1": trajectories(LABELS, NOBODY)}
    losses["retrain 2"] = trajectories(LABELS, NOBODY)
    cuts = cut_classes(Evidence(losses[""][:10], LABELS, CLASSES))
    weakest = min(cuts[TARGET].strength, cuts[int(LABELS[SECOND][0])].strength)
    own = {"retrain 1": own, "retrain 2": own}
    outcome, fit = defend(losses, marked=PLANTED | SECOND, own=own, defence=Filter(alarm=weakest / 1.2 / 2))
    assert fit.phases == ["look", "retrain 1", "retrain 2"]
    assert nearly(fit.dropped("retrain 2"), PLANTED)
    assert torch.equal(outcome.isolation.flagged, PLANTED)


def test_single_images_are_let_go_where_the_rest_is_clearly_wrong(defend, trajectories):
    right = PLANTED & (torch.arange(COUNT) < 30)
    own = torch.where(PLANTED & ~right, 0.01, 0.97)
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, own={"retrain 1": own})
    assert fit.phases == ["look", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, PLANTED & ~right)
    assert "about 34 images" in outcome.isolation.evidence[0]


def test_a_confident_referee_is_one_that_is_as_sure_as_told(defend, trajectories):
    right = PLANTED & (torch.arange(COUNT) < 30)
    own = torch.where(PLANTED & ~right, 0.01, 0.8)
    kept, _ = defend(trajectories(LABELS, PLANTED), marked=PLANTED, own={"retrain 1": own})
    assert torch.equal(kept.isolation.flagged, PLANTED)
    let_go, _ = defend(
        trajectories(LABELS, PLANTED), marked=PLANTED, own={"retrain 1": own}, defence=Filter(confident=0.7)
    )
    assert torch.equal(let_go.isolation.flagged, PLANTED & ~right)


def test_where_the_referee_is_neither_wrong_nor_right_none_is_let_go(defend, trajectories):
    """As with clean labels: many of the suspects look like their class, the trigger aside."""
    own = torch.where(PLANTED, 0.5, 0.97)
    own[PLANTED & (torch.arange(COUNT) < 60)] = 0.99
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, own={"retrain 1": own})
    assert fit.phases == ["look", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert outcome.isolation.verdict == "poisoned"


@pytest.mark.parametrize(("missed", "rounds"), [(1, 1), (12, 2)])
def test_what_only_a_poisoned_network_accepts_is_suspected_too(missed, rounds, defend, trajectories):
    """Poison that was not learned with the rest; another round follows where it is more than one in twenty."""
    slow = PLANTED & (torch.arange(COUNT) < 5 * missed)
    own = torch.where(PLANTED, 0.01, 0.97)
    outcome, fit = defend(
        trajectories(LABELS, PLANTED & ~slow),
        marked=PLANTED & ~slow,
        own={"retrain 1": own, "retrain 2": own, "look": torch.full((COUNT,), 0.97)},
    )
    assert nearly(fit.dropped("retrain 1"), PLANTED & ~slow)
    assert fit.phases[1:] == [f"retrain {number}" for number in range(1, rounds + 1)]
    assert torch.equal(outcome.isolation.flagged, PLANTED)


# --- poison that is not learned yet ----------------------------------------------------------------------------------


def not_learned(base, rows):
    """The same training, but some images stay as hard as they were."""
    losses = base.clone()
    losses[:, rows] = 3 * losses[:3].mean()
    losses[:, rows] *= 1 + 0.1 * torch.rand(losses[:, rows].shape, generator=torch.Generator().manual_seed(3))
    return losses


def learned_since(base, rows):
    """The rest of such a training: they are learned, but have not fallen further than the others."""
    losses = base.clone()
    losses[:, rows] = 0.5 + 0.1 * torch.rand(losses[:, rows].shape, generator=torch.Generator().manual_seed(4))
    return losses


def test_a_class_with_a_slow_part_is_looked_at_again_when_the_first_network_is_finished(defend, trajectories):
    base = trajectories(LABELS, NOBODY)
    losses = {"look": not_learned(base, PLANTED), "train": learned_since(base, PLANTED), "": base}
    outcome, fit = defend(losses, marked=PLANTED)
    assert fit.phases == ["look", "train", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert "hardly accepted as this class" in outcome.isolation.evidence[0]


def test_the_scan_suspects_a_slow_part_at_once(defend, trajectories):
    base = trajectories(LABELS, NOBODY)
    outcome, fit = defend({"": not_learned(base, PLANTED)}, "scan", marked=PLANTED)
    assert fit.phases == ["look"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert outcome.isolation.verdict == "poisoned"


@pytest.mark.parametrize(("what", "phases"), [("scan", ["look"]), ("run", ["look", "train"])])
def test_hard_images_that_look_like_the_rest_of_their_class_are_no_slow_part(what, phases, defend, trajectories):
    """A class falls apart, but to the network there is no gap between its parts."""
    base = trajectories(LABELS, NOBODY)
    outcome, fit = defend({"": not_learned(base, PLANTED)}, what)
    assert fit.phases == phases
    assert not bool(outcome.isolation.flagged.any())
    assert outcome.isolation.verdict == "no sign of poison"
    unseen, _ = defend({"": not_learned(base, PLANTED)}, what, defence=Filter(features=False))
    assert unseen.isolation.verdict == ("poisoned" if what == "scan" else "undecided")


def test_hard_images_that_were_never_learned_are_not_where_the_search_starts(defend, trajectories):
    base = trajectories(LABELS, NOBODY)
    hard = (LABELS == TARGET) & (torch.arange(COUNT) >= 200) & (torch.arange(COUNT) < 275)
    then = not_learned(learned_since(base, PLANTED), hard)
    losses = {"look": not_learned(base, PLANTED | hard), "train": then, "": base}
    own = torch.where(PLANTED, 0.01, 0.97)
    outcome, fit = defend(losses, marked=PLANTED, own={"retrain 1": own})
    assert fit.phases == ["look", "train", "retrain 1"]
    assert nearly(fit.dropped("retrain 1"), PLANTED)
    assert torch.equal(outcome.isolation.flagged, PLANTED)


@pytest.mark.parametrize(("count", "rounds"), [(15, 1), (25, 2)])
def test_hard_images_beside_slow_poison_come_back(count, rounds, defend, trajectories):
    """With another round where they are more than one in fifty of the set."""
    base = trajectories(LABELS, NOBODY)
    hard = (LABELS == TARGET) & (torch.arange(COUNT) >= 200) & (torch.arange(COUNT) < 200 + 5 * count)
    own = torch.where(PLANTED, 0.01, torch.where(hard, 0.6, 0.97))
    losses = {"look": not_learned(base, PLANTED | hard), "train": learned_since(base, PLANTED | hard), "": base}
    outcome, fit = defend(losses, marked=PLANTED | hard, own={"retrain 1": own, "retrain 2": own})
    assert fit.phases[2:] == [f"retrain {number}" for number in range(1, rounds + 1)]
    assert nearly(fit.dropped("retrain 1"), PLANTED | hard)
    if rounds == 2:
        assert nearly(fit.dropped("retrain 2"), PLANTED)
    assert torch.equal(outcome.isolation.flagged, PLANTED)


def test_a_slow_part_that_another_network_half_accepts_is_let_go(defend, trajectories):
    base = trajectories(LABELS, NOBODY)
    losses = {"look": not_learned(base, PLANTED), "train": learned_since(base, PLANTED), "": base}
    own = {"retrain 1": torch.where(PLANTED, 0.4, 0.97)}
    outcome, fit = defend(losses, marked=PLANTED, own=own, defence=Filter(late=False))
    assert fit.phases == ["look", "train", "retrain 1"]
    assert not bool(outcome.isolation.flagged.any())
    assert outcome.model is model_of(fit, "look")


# --- what one step must not hide from the next ------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [10, 19, 30])
def test_a_class_that_is_nearly_all_poison_is_no_clean_class(clean, defend, trajectories):
    """Under twenty clean images are too few to see a gap to; the losses decide then."""
    own = (LABELS == TARGET).nonzero().squeeze(1)
    planted = torch.zeros(COUNT, dtype=torch.bool)
    planted[own[: 200 - clean]] = True
    judged = {f"retrain {number}": torch.where(planted, 0.01, 0.97) for number in (1, 2, 3)}
    losses = {"": trajectories(LABELS, planted), "retrain 1": trajectories(LABELS, NOBODY)}
    outcome, _ = defend(losses, marked=planted, own=judged)
    assert outcome.isolation.verdict == "poisoned"
    assert torch.equal(outcome.isolation.flagged, planted)


@pytest.mark.parametrize(("apart", "flagged"), [(10.0, 40), (5.0, 0)])
def test_a_slow_part_is_not_let_go_where_something_else_is_sure(apart, flagged, defend, trajectories):
    """Clean-label poison: the referee half accepts it."""
    rows = (LABELS == TARGET).nonzero().squeeze(1)
    suspicion = PLANTED[rows].double()
    cuts = (
        Cut(TARGET, rows, suspicion, 2.0, 0.0, 0.0, slow=True),
        ChannelCut(TARGET, rows, suspicion, gain=2.0, apart=apart, common=0.0),
    )

    own = {"retrain 1": torch.where(PLANTED, 0.5, 0.97)}
    outcome, _ = defend(trajectories(LABELS, NOBODY), defence=shown({"look": cuts, "train": cuts}), own=own)
    assert int(outcome.isolation.flagged.sum()) == flagged


def test_a_faint_second_find_does_not_weaken_the_first(defend, trajectories):
    """Clean-label poison of which some was missed: the referee was shown that, and accepts all of it."""
    missed = PLANTED & (PLANTED.cumsum(0) % 2 == 0)
    easy = torch.full((COUNT,), 0.97)
    looks = {"look": [by_channels(PLANTED & ~missed, 10.0, early=True)], "retrain 1": [by_channels(missed, 0.9)]}
    own = dict.fromkeys(("look", "retrain 1", "retrain 2", "retrain 3"), easy)
    outcome, fit = defend(trajectories(LABELS, NOBODY), defence=shown(looks), own=own)
    assert fit.phases == ["look", "retrain 1", "retrain 2"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert "strength 10.00" in outcome.isolation.evidence[0]


def test_what_a_finished_training_shows_has_the_alarm_of_one(defend, trajectories):
    """Another class is accused by the second network, above the late alarm and under that of a first look."""
    looks = {"look": [by_channels(PLANTED, 10.0, early=True)], "retrain 1": [by_channels(SECOND, 0.9, OTHER)]}
    own = dict.fromkeys(("retrain 1", "retrain 2"), torch.where(PLANTED | SECOND, 0.01, 0.97))
    outcome, fit = defend(trajectories(LABELS, NOBODY), defence=shown(looks), own=own)
    assert fit.phases == ["look", "retrain 1", "retrain 2"]
    assert torch.equal(outcome.isolation.flagged, PLANTED | SECOND)
    first, second = outcome.isolation.evidence[:2]
    assert "'cat' is poisoned" in first
    assert "alarm at 1.10" in first
    assert "'eel' is poisoned" in second
    assert "alarm at 0.55" in second
    faint = {"look": [by_channels(PLANTED, 10.0, early=True)], "retrain 1": [by_channels(SECOND, 0.7, OTHER)]}
    outcome, _ = defend(trajectories(LABELS, NOBODY), defence=shown(faint), own=own)
    doubt = next(words for words in outcome.isolation.evidence if "'eel'" in words)
    rare = "alarm at 0.55; fewer than 1 in 100 clean trainings reach as much"
    assert doubt.endswith(f"{rare}): clean classes seldom show as much.")


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_slow_part_is_let_go_and_what_stands_out_beside_it_is_not(rounds, defend, trajectories):
    more = (LABELS == TARGET) & (torch.arange(COUNT) >= 200) & (torch.arange(COUNT) < 300)
    slow = Cut(TARGET, OF_TARGET, PLANTED[OF_TARGET].double(), 2.0, 0.0, 0.0, slow=True)
    looks = {"look": [slow], "train": [slow], "retrain 1": [by_channels(more, 0.8)]}
    looks["retrain 2"] = [by_channels(PLANTED, 3.0)]
    half, wrong = torch.where(PLANTED, 0.4, 0.97), torch.where(PLANTED | more, 0.01, 0.97)
    own = {"look": wrong, "train": wrong, "retrain 1": half, "retrain 2": wrong, "retrain 3": wrong}
    defence = shown(looks, rounds=rounds)
    outcome, _ = defend(trajectories(LABELS, NOBODY), defence=defence, own=own)
    expected = more if rounds == 1 else more | PLANTED
    assert torch.equal(outcome.isolation.flagged, expected), "a class is not deaf to what is seen of it later"


def test_the_verdict_quotes_what_raised_the_alarm(defend, trajectories):
    """Not what stayed under it, and not what means the other images of the class."""
    base = trajectories(LABELS, NOBODY)
    slow = Cut(TARGET, OF_TARGET, PLANTED[OF_TARGET].double(), 1.0, 0.0, 0.0, slow=True, early=True)
    under = by_channels(PLANTED, 0.9, early=True)
    outcome, _ = defend(base, "scan", defence=shown({"look": [slow, under]}))
    assert "hardly accepted as this class" in outcome.isolation.evidence[0]
    other = by_channels((LABELS == TARGET) & ~PLANTED, 3.0)
    defence = shown({"train": [by_channels(PLANTED, 0.9), other]}, flagged={"train": PLANTED})
    outcome, _ = defend(base, defence=defence, own={"retrain 1": torch.where(PLANTED, 0.01, 0.97)})
    assert "strength 0.90" in outcome.isolation.evidence[0]


def test_a_class_that_was_let_go_is_said_to_have_been(defend, trajectories):
    looks = {"look": [by_channels(PLANTED, 1.2, early=True)], "train": [by_channels(PLANTED, 0.9)]}
    easy = dict.fromkeys(("retrain 1", "retrain 2"), torch.full((COUNT,), 0.97))
    outcome, _ = defend(trajectories(LABELS, NOBODY), defence=shown(looks), own=easy)
    assert outcome.isolation.verdict == "undecided"
    assert "was let go" in outcome.isolation.evidence[0]


def test_what_could_not_be_looked_at_is_said(defend, trajectories):
    outcome, _ = defend(trajectories(LABELS, NOBODY), defence=Filter(look=0.99, latest=20))
    assert "too short for a look half-way" in outcome.isolation.evidence[-1]
    outcome, _ = defend(trajectories(LABELS, NOBODY), with_head=False)
    assert "nothing but its answers" in outcome.isolation.evidence[-1]


def test_after_a_false_alarm_the_end_of_the_training_is_looked_at(defend, trajectories):
    """A class is let go, and another was learned after the first look; what counts is what the network knows then."""
    early, late = trajectories(LABELS, PLANTED), trajectories(LABELS, SECOND, learned_at=14)
    missed = (LABELS == OTHER) & (torch.arange(COUNT) >= 950)
    clean = trajectories(LABELS, NOBODY)
    losses = {"": torch.cat([early[:10], late[10:]]), "retrain 1": clean, "retrain 2": clean, "retrain 3": clean}
    certain, rejecting = torch.full((COUNT,), 0.97), torch.where(SECOND | missed, 0.01, 0.97)
    own = {"look": torch.where(missed, 0.3, 0.97), "retrain 1": certain, "train": certain}
    own |= {"retrain 2": rejecting, "retrain 3": rejecting}
    marked = {"look": PLANTED, "train": SECOND}
    outcome, fit = defend(losses, defence=barely_alarmed(early), marked=marked, own=own)
    assert fit.phases == ["look", "retrain 1", "train", "retrain 2", "retrain 3"]
    assert torch.equal(outcome.isolation.flagged, SECOND | missed)
    assert outcome.model is model_of(fit, "retrain 3")
    assert nearly(fit.dropped("retrain 3"), SECOND | missed, strangers=30)


def test_held_out_images_were_not_shown_to_the_referee(defend, trajectories):
    """That the referee is unsure of them is no sign of anything."""
    held_out = (torch.arange(COUNT) // 5) % 10 == 0
    unsure = held_out & (LABELS == TARGET) & ~PLANTED
    own = torch.where(PLANTED, 0.01, torch.where(unsure, 0.3, 0.97))
    judged = {"look": torch.full((COUNT,), 0.97), "retrain 1": own}
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, own=judged, held_out=held_out)
    assert fit.phases == ["look", "retrain 1"]
    assert int(unsure.sum()) == 16
    assert not bool(outcome.isolation.flagged[unsure].any())
    assert not any("was trained on" in words for words in outcome.isolation.evidence)


def test_a_class_of_which_nothing_is_left_is_named(defend, trajectories):
    planted = LABELS == TARGET
    planted &= torch.arange(COUNT) >= 50
    own = torch.where(LABELS == TARGET, 0.01, 0.97)
    outcome, fit = defend(trajectories(LABELS, planted), marked=LABELS == TARGET, own={"retrain 1": own})
    assert not bool((~fit.dropped(fit.phases[-1]) & (LABELS == TARGET)).any())
    assert outcome.isolation.evidence[-1].startswith("No image of 'cat' was left to train on")


@pytest.mark.parametrize(("copies", "held_out", "verdict"), [(2, 0, "undecided"), (1, 2, "undecided"), (1, 0, None)])
def test_copies_and_held_out_images_do_not_make_a_class_large(copies, held_out, verdict, defend, trajectories, data):
    """200 images a class, of which 102 are copies, or 60 % were held out."""
    images = data.images.clone()
    if copies > 1:
        images[490:980] = data.images[:490]
        images[980:] = data.images[:20]
    away = (torch.arange(COUNT) // 5) % 5 < 3 if held_out else None
    given = dataclasses.replace(data, images=images)
    outcome, _ = defend(trajectories(LABELS, NOBODY), "scan", data=given, held_out=away)
    assert outcome.isolation.verdict == (verdict or "no sign of poison")


# --- other uses of the suspects, and steps left out -------------------------------------------------------------------


@pytest.mark.parametrize(("times", "suspected"), [(1.2, False), (2.0, True)])
def test_another_class_needs_the_strength_of_a_first_look_later(times, suspected, defend, trajectories):
    losses = {"": trajectories(LABELS, PLANTED), "retrain 1": trajectories(LABELS, SECOND)}
    losses["retrain 2"] = trajectories(LABELS, NOBODY)
    kept = ~PLANTED
    cuts = {cut.label: cut for cut in cut_classes(Evidence(losses["retrain 1"][:, kept], LABELS[kept], CLASSES))}
    alarm = cuts[int(LABELS[SECOND][0])].strength / times
    own = dict.fromkeys(("retrain 1", "retrain 2"), torch.where(PLANTED | SECOND, 0.01, 0.97))
    outcome, fit = defend(losses, marked=PLANTED, own=own, defence=Filter(alarm=alarm, features=False))
    assert bool(outcome.isolation.flagged[PLANTED].all())
    assert bool(outcome.isolation.flagged[SECOND].any()) is suspected


def test_unlearning_finishes_the_first_network_and_forgets_the_suspects_in_it(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, defence=Filter(suspects="unlearn"))
    assert fit.phases == ["look", "train", "unlearn"]
    assert outcome.model is model_of(fit, "look") is model_of(fit, "unlearn")
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert nearly(fit.dropped("unlearn"), NOBODY)
    assert "made to forget the flagged ones" in outcome.isolation.evidence[-1]


def test_who_was_suspected_at_the_first_look_is_unlearned_too(defend, trajectories):
    early, late = trajectories(LABELS, PLANTED), trajectories(LABELS, SECOND)
    # At the end the second alone stands out.
    losses = {"look": early, "": torch.cat([early[:10].mean(0).expand(10, -1), late[10:]])}
    outcome, fit = defend(losses, marked=PLANTED | SECOND, defence=Filter(suspects="unlearn"))
    assert fit.phases == ["look", "train", "unlearn"]
    assert bool(outcome.isolation.flagged[PLANTED].all())
    assert outcome.isolation.verdict == "poisoned"
    assert "'cat' is poisoned" in outcome.isolation.evidence[0]


def test_where_nothing_is_suspected_nothing_is_unlearned(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, NOBODY), defence=Filter(suspects="unlearn"))
    assert fit.phases == ["look", "train"]
    assert outcome.isolation.verdict == "no sign of poison"


def test_suspects_are_learned_without_their_labels(defend, trajectories):
    # The referee gives the other four classes a quarter of the rest each, which is confidence enough here.
    defence = Filter(suspects="unlabelled", confident=0.2)
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, defence=defence)
    assert fit.phases == ["look", "retrain 1", "unlabelled"]
    assert outcome.model is model_of(fit, "unlabelled") is model_of(fit, "retrain 1")
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert nearly(fit.dropped("unlabelled"), NOBODY)
    assert "then learned 40 of the suspects" in outcome.isolation.evidence[-1]


def test_without_a_confident_referee_no_suspect_gets_another_label(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, defence=Filter(suspects="unlabelled"))
    assert fit.phases == ["look", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)


def test_without_the_features_the_losses_alone_decide(defend, trajectories):
    seen = PLANTED & (torch.arange(COUNT) >= 20)
    losses = {"": trajectories(LABELS, PLANTED)}
    without, _ = defend(losses, "scan", marked=seen, defence=Filter(features=False))
    assert torch.equal(without.isolation.flagged, PLANTED)


def test_without_the_referee_the_first_suspects_are_final(defend, trajectories):
    right = PLANTED & (torch.arange(COUNT) < 30)
    own = torch.where(PLANTED & ~right, 0.01, 0.97)
    losses = trajectories(LABELS, PLANTED)
    outcome, fit = defend(losses, marked=PLANTED, own={"retrain 1": own}, defence=Filter(referee=False))
    assert fit.phases == ["look", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)


# --- the network for use ---------------------------------------------------------------------------------------------


def test_a_network_that_is_shown_less_makes_as_many_updates(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED)
    kept = COUNT - int(fit.dropped("retrain 1").sum())
    assert kept < 0.97 * COUNT
    assert fit.epochs == {"look": 20, "retrain 1": round(20 * COUNT / kept)}
    assert outcome.model is model_of(fit, "retrain 1")


@pytest.mark.parametrize("planted", [60, 120])
def test_a_class_that_clean_label_poison_made_rare_is_made_up_for(planted, defend, trajectories):
    own = (LABELS == TARGET).nonzero().squeeze(1)
    poison = torch.zeros(COUNT, dtype=torch.bool)
    poison[own[:planted]] = True
    outcome, fit = defend(trajectories(LABELS, poison), marked=poison)
    left = len(own) - int((fit.dropped("retrain 1") & (LABELS == TARGET)).sum())
    bias = outcome.model.head.bias
    assert left < 150
    raised = torch.zeros(CLASSES)
    raised[TARGET] = math.log(200 / left)
    assert torch.allclose(bias, raised, atol=1e-3)
    assert "rarer than the others" in " ".join(outcome.isolation.evidence)
    plain, _ = defend(trajectories(LABELS, poison), marked=poison, defence=Filter(balance=False))
    assert not bool(plain.model.head.bias.any())


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "early"), [(False, 2.0), (True, 1.0)])
def test_the_sensitivity_moves_the_alarm(features, early, defend, trajectories):
    """A first look takes twice the alarm, unless a class was learned before all others and there is a gap."""
    losses = trajectories(LABELS, PLANTED)
    strength = cut_classes(Evidence(losses[:10], LABELS, CLASSES))[TARGET].strength
    for sensitivity, alarmed in ((0.99, False), (1.01, True)):
        defence = Filter(sensitivity=sensitivity, alarm=strength / early, features=features)
        outcome, _ = defend(losses, "scan", marked=PLANTED, defence=defence)
        assert bool(outcome.isolation.flagged.any()) is alarmed
        below = "no sign of poison" if features else "undecided"
        assert outcome.isolation.verdict == ("poisoned" if alarmed else below)
        if alarmed or not features:
            assert f"alarm at {strength / sensitivity:.2f}" in outcome.isolation.evidence[0]


@pytest.mark.parametrize("what", ["scan", "run"])
def test_a_class_is_in_doubt_from_the_alarm_at_a_first_look_and_from_nine_tenths_at_the_end(what, defend, trajectories):
    losses = trajectories(LABELS, PLANTED)
    epochs, share, why = (10, 1.0, "the end of a whole training") if what == "scan" else (20, 0.9, "clean classes")
    strength = cut_classes(Evidence(losses[:epochs], LABELS, CLASSES))[TARGET].strength
    # Below a sensitivity of 0.1, gains alone raise no doubt here.
    for factor, verdict in ((0.99, "undecided"), (1.01, "no sign of poison")):
        defence = Filter(sensitivity=0.1, alarm=0.1 * factor * strength / share, features=False)
        outcome, _ = defend(losses, what, marked=PLANTED, defence=defence)
        assert outcome.isolation.verdict == verdict
        doubt = f"'cat' is not above suspicion (strength {strength:.2f}"
        assert (doubt in outcome.isolation.evidence[0]) is (verdict == "undecided")
        assert (why in outcome.isolation.evidence[0]) is (verdict == "undecided")


def test_what_a_first_look_barely_sees_is_looked_at_again_at_the_end(defend, trajectories):
    """A clean class may show as much early on; nothing is dropped for it."""
    early, late = trajectories(LABELS, PLANTED), trajectories(LABELS, SECOND)
    losses = {"": torch.cat([early[:10], late[10:]])}
    strength = cut_classes(Evidence(early[:10], LABELS, CLASSES))[TARGET].strength
    defence = Filter(alarm=strength / 1.9, features=False)
    outcome, fit = defend(losses, marked={"look": PLANTED, "train": NOBODY}, defence=defence)
    assert fit.phases[:2] == ["look", "train"]
    assert not bool((outcome.isolation.flagged & PLANTED).any())


# --- held-out images -------------------------------------------------------------------------------------------------


def test_held_out_poison_is_flagged_with_the_rest(defend, trajectories):
    held_out = torch.arange(COUNT) % 9 == 0
    assert bool((PLANTED & held_out).any())
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, held_out=held_out)
    assert fit.phases == ["look", "retrain 1"]
    assert torch.equal(outcome.isolation.flagged, PLANTED)


# --- another network looks -------------------------------------------------------------------------------------------


class Asked(Recall):
    """The network that is asked for."""


ASKED_PLAN = TrainPlan(epochs=20, lr=0.003, batch_size=50)


@pytest.fixture
def handed_over(data, runtime, monkeypatch):
    """Filter with a detector of its own: the outcome, and what was trained."""
    detector = Detector("a small one", lambda _: Recall(), PLAN)
    monkeypatch.setattr(filter_module, "detector_for", lambda *_: detector)

    def call(losses, verb="run", defence=None, **rest):
        fit = Fabricated(runtime, losses, **rest)
        method = getattr(defence or Filter(), verb)
        outcome = method(data, build_model=lambda _: Asked(), fit=fit, plan=ASKED_PLAN, seeds=Seeds(0))
        assert "Looked at with a small one in place of the network that is to be used." in outcome.isolation.evidence
        plans = {name: plan for name, plan in fit.plans.items() if plan.batch_size == ASKED_PLAN.batch_size}
        kinds = {name: type(model) for name, model, _ in fit.calls}
        assert all((kinds[name] is Asked) is (name in plans) for name in fit.phases), "each by its own plan"
        return outcome, fit

    return call


def test_the_network_that_is_asked_for_is_trained_once_on_what_another_leaves(handed_over, trajectories):
    outcome, fit = handed_over(trajectories(LABELS, PLANTED), marked=PLANTED)
    assert fit.phases == ["look", "retrain 1", "final"]
    assert outcome.model is model_of(fit, "final")
    assert isinstance(outcome.model, Asked)
    assert torch.equal(outcome.isolation.flagged, PLANTED)
    assert nearly(fit.dropped("final"), PLANTED)
    assert fit.epochs["final"] == round(20 / (1 - 0.04)), "as many updates as ordinary training"


def test_where_another_finds_nothing_it_is_trained_on_everything(handed_over, trajectories):
    outcome, fit = handed_over(trajectories(LABELS, NOBODY))
    assert fit.phases == ["look", "train", "final"]
    assert isinstance(outcome.model, Asked)
    assert bool(fit.calls[-1][2].all())
    assert fit.epochs["final"] == 20
    assert outcome.isolation.verdict == "no sign of poison"


def test_it_forgets_what_another_found(handed_over, trajectories):
    outcome, fit = handed_over(trajectories(LABELS, PLANTED), marked=PLANTED, defence=Filter(suspects="unlearn"))
    assert fit.phases == ["look", "train", "final", "unlearn"]
    assert outcome.model is model_of(fit, "final") is model_of(fit, "unlearn")
    assert bool(fit.calls[2][2].all())
    assert nearly(fit.dropped("unlearn"), NOBODY)


def test_it_learns_the_suspects_of_another_without_their_labels(handed_over, trajectories):
    defence = Filter(suspects="unlabelled", confident=0.2)
    outcome, fit = handed_over(trajectories(LABELS, PLANTED), marked=PLANTED, defence=defence)
    assert fit.phases == ["look", "retrain 1", "final", "unlabelled"]
    assert outcome.model is model_of(fit, "unlabelled") is model_of(fit, "final")


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("look", r"a small one looking for poison.*defence\.detector=own"),
        ("retrain 1", r"a small one looking for poison.*defence\.detector=own"),
        ("final", "^not finite$"),
    ],
)
def test_a_detector_that_cannot_be_trained_says_how_to_do_without(phase, words, handed_over, trajectories, monkeypatch):
    trains = Fabricated.__call__

    def explodes(self, model, data, now, **rest):
        if now.name == phase:
            raise NonFiniteLossError("not finite")
        return trains(self, model, data, now, **rest)

    monkeypatch.setattr(Fabricated, "__call__", explodes)
    with pytest.raises(NonFiniteLossError, match=words):
        handed_over(trajectories(LABELS, PLANTED), marked=PLANTED)


def test_a_scan_trains_the_other_alone(handed_over, trajectories):
    _, fit = handed_over(trajectories(LABELS, PLANTED), "scan", marked=PLANTED)
    assert fit.phases == ["look"]


@pytest.mark.parametrize(
    ("asked", "name", "detector"),
    [
        ("wrn-16-1", "auto", None),
        ("wrn-10-1", "auto", None),
        ("wrn-16-2", "auto", "wrn-16-1"),
        ("resnet-18", "auto", "wrn-16-1"),
        ("resnet-18", "own", None),
        ("resnet-18", "wrn-10-1", "wrn-10-1"),
        ("wrn-16-1", "wrn-10-1", "wrn-10-1"),
        ("wrn-16-2", "wrn-16-2", None),
    ],
)
def test_which_network_looks(asked, name, detector, blobs):
    data = blobs(12, 3, channels=3, height=16, width=16)
    build, _ = builder_from(asked, data)
    plan = TrainPlan(epochs=7, lr=0.003, batch_size=32, schedule="constant", augment=("flip",))
    found = detector_for(name, build, data, plan)
    assert (found and found.name) == detector
    if found is not None:
        expected, _ = builder_from(found.name, data)
        assert list(found.build_model(torch.Generator()).state_dict()) == list(expected(torch.Generator()).state_dict())
        assert found.plan == TrainPlan(epochs=7, augment=("flip",)), "the plan that the alarm was measured with"


def test_a_network_of_ones_own_that_is_like_a_measured_one_looks_itself(blobs):
    data = blobs(12, 3, channels=1, height=16, width=16)
    build, _ = builder_from(WideResNet(16, 1, 1, 3), data)
    assert detector_for("auto", build, data, PLAN) is None
    assert detector_for("wrn-16-1", build, data, PLAN) is None


def test_a_named_detector_sees_images_as_they_are(blobs):
    data = blobs(12, 3, channels=3, height=96, width=96)
    found = detector_for("wrn-10-1", builder_from("resnet-18", data)[0], data, PLAN)
    assert found.name == "wrn-10-1"


@pytest.mark.parametrize(
    ("asked", "name", "height", "width", "size"),
    [
        ("wrn-16-1", "auto", 64, 64, None),
        ("wrn-16-1", "auto", 68, 68, (64, 64)),
        ("wrn-16-1", "own", 128, 128, None),
        ("resnet-18", "auto", 128, 96, (64, 48)),
        ("resnet-18", "auto", 48, 192, (16, 64)),
    ],
)
def test_a_detector_sees_large_images_as_the_alarm_was_measured(asked, name, height, width, size, blobs):
    data = blobs(12, 3, channels=3, height=height, width=width)
    build, _ = builder_from(asked, data)
    found = detector_for(name, build, data, PLAN)
    if size is None:
        assert found is None
        return
    assert found.name == f"wrn-16-1, which sees images of {size[0]} x {size[1]} pixels,"
    inner, _ = builder_from("wrn-16-1", data)
    images = data.images.float() / 255
    smaller = torch.nn.functional.adaptive_avg_pool2d(images, size)
    whole, small = found.build_model(torch.Generator()).eval(), inner(torch.Generator()).eval()
    with torch.no_grad():
        assert torch.equal(whole(images), small(smaller))


def test_an_unknown_detector_is_refused():
    with pytest.raises(UnknownNameError, match="resnet-81"):
        Filter(detector="resnet-81")


# --- real trainings --------------------------------------------------------------------------------------------------


class Refusing(Silent):
    """Stops the work at the first batch of any phase but these."""

    def __init__(self, *allowed):
        self.allowed = allowed

    def bar(self, title, total, unit):
        assert title in self.allowed or total == 0, f"{title} is trained again"
        return super().bar(title, total, unit)


@pytest.fixture
def trained(runtime, blobs, tiny, plan, checkpoint_dir):
    data = blobs(60, 2, channels=1, height=16, width=16)

    def call(defence, *allowed):
        seeds = Seeds(0)
        checkpoints = Checkpoints(checkpoint_dir, resume=True)
        fit = Trainer(runtime, seeds, checkpoints=checkpoints, progress=Refusing(*allowed))
        return defence.run(data, build_model=tiny(data), fit=fit, plan=plan.but(epochs=4), seeds=seeds)

    return call


def assert_same(outcome, expected):
    weights, wanted = outcome.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert torch.equal(outcome.isolation.scores, expected.isolation.scores)
    assert torch.equal(outcome.isolation.flagged, expected.isolation.flagged)
    assert outcome.isolation.evidence == expected.isolation.evidence
    assert [history.phase for history in outcome.histories] == [history.phase for history in expected.histories]


@pytest.mark.parametrize("detector", ["own", "auto"])
@pytest.mark.parametrize("sensitivity", [1e-3, 1e3])
def test_the_checkpoints_of_finished_phases_are_enough(sensitivity, detector, trained, checkpoint_dir):
    """Whatever was decided between the phases is decided again in the same way."""
    defence = Filter(sensitivity=sensitivity, rounds=2, fewest=1, detector=detector)
    every = ("look", "train", "retrain 1", "retrain 2", "final")
    expected = trained(defence, *every)
    phases = [history.phase for history in expected.histories]
    if detector == "own":
        assert phases[:2] == (["look", "train"] if sensitivity < 1 else ["look", "retrain 1"])
    assert (phases[-1] == "final") is (detector == "auto")
    assert_same(trained(defence), expected)
    for done in range(1, len(phases)):
        for phase in phases[done:]:
            (checkpoint_dir / f"{phase}.safetensors").unlink()
        assert_same(trained(defence, *phases[done:]), expected)


def test_the_planted_control_adds_a_sentence_and_nothing_else(runtime, blobs, tiny, plan):
    data = blobs(60, 2, channels=1, height=16, width=16)

    def run(control):
        seeds = Seeds(0)
        defence = Filter(control=control, detector="own")
        return defence.run(data, build_model=tiny(data), fit=Trainer(runtime, seeds), plan=plan, seeds=seeds)

    without, with_it = run(False), run(True)
    assert with_it.isolation.evidence[:-1] == without.isolation.evidence
    assert with_it.isolation.evidence[-1].startswith("Planted control, ")
    plain = dataclasses.replace(with_it.isolation, evidence=without.isolation.evidence)
    assert_same(dataclasses.replace(with_it, isolation=plain, histories=without.histories), without)
    assert [history.phase for history in with_it.histories][: len(without.histories)] == [
        history.phase for history in without.histories
    ]
    assert with_it.histories[-1].phase.startswith("control ")
    assert with_it.histories[-1].losses.shape[1] == 60


@pytest.mark.parametrize(
    ("verb", "found_at", "looks"),
    [
        ("run", "control 2 look", [("control 2 look", 2, False)]),
        ("run", None, [("control 2 look", 2, False), ("control 2 look", 4, True)]),
        ("scan", None, [("control 2 look", 2, False)]),
    ],
)
def test_the_planted_control_is_looked_at_as_the_set_is(verb, found_at, looks, runtime, blobs, tiny, plan):
    """Half-way, and at the end where nobody was suspected, with what the first look saw."""
    data, seen = blobs(60, 2, channels=1, height=16, width=16), []

    class Watching(Looker):
        def look_at(self, history, model, data, fit, plan, *, earlier=None, **_):
            nobody = torch.zeros(len(data), dtype=torch.bool)
            if history.phase.startswith("control"):
                seen.append((history.phase, len(history.losses), earlier is not None))
            suspects = nobody.clone()
            suspects[0] = history.phase == found_at
            return Look({}, suspects, suspects, seen=torch.zeros(len(data), 3))

    class Watched(Filter):
        def looker(self):
            return Watching(**vars(super().looker()))

    defence, seeds = Watched(control=True, detector="own", fewest=2), Seeds(0)
    plan = dataclasses.replace(plan, epochs=4)
    method = getattr(defence, verb)
    outcome = method(data, build_model=tiny(data), fit=Trainer(runtime, seeds), plan=plan, seeds=seeds)
    assert seen == looks
    assert "0 % were found" in outcome.isolation.evidence[-1]


def test_too_few_epochs_leave_the_verdict_open(defend, trajectories):
    outcome, fit = defend(trajectories(LABELS, PLANTED), marked=PLANTED, defence=Filter(fewest=21, latest=21))
    assert fit.phases == ["look"]
    assert (outcome.isolation.verdict, int(outcome.isolation.flagged.sum())) == ("undecided", 0)
    assert "under 21 epochs" in outcome.isolation.evidence[0]


def test_where_nothing_is_suspected_the_network_is_that_of_ordinary_training(runtime, blobs, tiny):
    data = blobs(80, 3, height=16, width=16)
    build, plan = tiny(data), TrainPlan(epochs=6, batch_size=16, lr=0.1, augment=("flip",))
    networks = []
    detectors = ("own", "auto", "wrn-10-1")
    for defence in (NoDefence(), *(Filter(sensitivity=1e-3, detector=detector) for detector in detectors)):
        outcome = defence.run(data, build_model=build, fit=Trainer(runtime, Seeds(0)), plan=plan, seeds=Seeds(0))
        assert not bool(outcome.isolation.flagged.any())
        networks.append(outcome.model.state_dict())
    for name, value in networks[0].items():
        assert all(torch.equal(value, network[name]) for network in networks[1:]), name


@pytest.mark.parametrize("vouched", [PLANTED, PLANTED & (torch.arange(COUNT) % 2 == 0)], ids=["all", "half"])
def test_whom_a_person_vouches_for_is_trained_on_and_not_flagged(vouched, defend, trajectories, data):
    losses = trajectories(LABELS, PLANTED)
    outcome, fit = defend(losses, data=dataclasses.replace(data, vouched=vouched), marked=PLANTED)
    flagged = outcome.isolation.flagged
    assert not bool((flagged & vouched).any())
    assert all(bool(shown[vouched].all()) for _, _, shown in fit.calls)
    words = " ".join(outcome.isolation.evidence)
    assert f"'cat' {int(vouched.sum())} images would be suspected if nobody vouched for them" in words
    left = PLANTED & ~vouched
    if bool(left.any()):
        assert nearly(flagged, left)
        assert outcome.isolation.verdict == "poisoned"
    else:
        assert not bool(flagged.any())
        assert fit.phases == ["look", "train"]
        assert outcome.isolation.verdict == "no sign of poison"
        assert outcome.isolation.doubtful == ()
