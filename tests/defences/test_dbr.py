"""D-BR: the stop rule on figures made by hand, the weights it ends with, resuming, and a backdoor before and after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from easy_backdoor import attack_success, clean_accuracy, defend, planted

from antibackdoor.defences import Dbr
from antibackdoor.defences.dbr import Standing
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Trainer

START = Standing(accuracy=0.95, by_class=(0.95,) * 10, agreement=1.0, largest=1.0)


def standing(accuracy=0.95, agreement=0.1, largest=0.2, worst=None):
    by_class = (0.95,) * 9 + (0.95 if worst is None else worst,)
    return Standing(accuracy, by_class, agreement, largest)


# Of 100 suspects in 10 classes chance is 0.1 + 2 sqrt(1 / 1000) = 0.163.
@pytest.mark.parametrize(
    ("now", "ruling"),
    [
        (standing(), "done"),
        (standing(agreement=0.16), "done"),
        (standing(agreement=0.17), "go on"),
        (standing(largest=0.5), "done"),
        (standing(largest=0.51), "go on"),  # The trigger has moved to another class.
        (standing(accuracy=0.941), "done"),
        (standing(accuracy=0.939), "go on"),
        (standing(accuracy=0.931), "go on"),
        (standing(accuracy=0.929), "harmed"),
        (standing(accuracy=0.929, agreement=1.0), "harmed"),
        (standing(worst=0.91), "done"),
        (standing(worst=0.89), "go on"),  # A class was unlearned, not a trigger.
        (standing(accuracy=1.0, agreement=1.0, largest=1.0), "go on"),
    ],
)
def test_the_stop_rule(now, ruling):
    assert Dbr().ruling(START, now, suspects=100) == ruling


@pytest.mark.parametrize(("lost", "ruling"), [(1, "done"), (2, "go on")])
def test_one_of_the_few_images_that_judge_a_class_is_chance(lost, ruling):
    start = Standing(1.0, (1.0,) * 10, 1.0, 1.0, judges=(12,) * 10)
    now = Standing(0.995, (*(1.0,) * 9, 1 - lost / 12), 0.1, 0.2, judges=(12,) * 10)
    assert Dbr().ruling(start, now, suspects=100) == ruling


def test_few_suspects_do_not_pass_for_forgotten():
    # By chance and two deviations, one suspect may have its label; half of them must not, however few.
    assert Dbr().ruling(START, standing(agreement=1.0), suspects=1) == "go on"
    assert Dbr().ruling(START, standing(agreement=0.5), suspects=2) == "done"


def test_of_two_classes_forgotten_suspects_are_all_in_the_other():
    start = Standing(0.95, (0.95, 0.95), 1.0, 1.0)
    assert Dbr().ruling(start, Standing(0.95, (0.95, 0.95), 0.0, 1.0), suspects=100) == "done"


class Stopping(Trainer):
    """Is interrupted before a phase; notes which phases were trained."""

    def __init__(self, *args, before=None, **rest):
        super().__init__(*args, **rest)
        self.before, self.phases = before, []

    def fit(self, model, data, phase, **rest):
        if phase.name == self.before:
            raise KeyboardInterrupt
        self.phases.append(phase)
        return super().fit(model, data, phase, **rest)


@pytest.fixture
def run(blobs, runtime, tiny, plan):
    def call(defence, verb="run", *, count=160, epochs=3, before=None, folder=None):
        data = planted(blobs, count, 0.1, 0).observed
        checkpoints = Checkpoints(folder, resume=True) if folder else None
        trainer = Stopping(runtime, Seeds(0), before=before, checkpoints=checkpoints)
        settings = {"runtime": runtime, "tiny": tiny, "plan": plan, "verb": verb, "epochs": epochs}
        return defend(defence, data, trainer=trainer, **settings), trainer.phases

    return call


def same_weights(one, two):
    first, second = one.model.state_dict(), two.model.state_dict()
    return all(torch.equal(first[name], second[name]) for name in second)


# Whatever the suspects are, they are unlearned; no fall of accuracy ends the rounds.
ALWAYS = Dbr(signal="loss", share=0.2, rounds=3, learnt=0.01, harm=0.99, unlearn_lr=0.01, unlearn_batch_size=8)


def test_rounds_are_made_of_two_phases_over_two_parts(run):
    outcome, phases = run(ALWAYS)
    names = [phase.name for phase in phases]
    assert names[:3] == ["train", "unlearn 1", "relearn 1"]
    assert len(names) % 2 == 1
    by_name = {phase.name: phase for phase in phases}
    assert by_name["unlearn 1"].freeze_norm
    assert by_name["unlearn 1"].clip_norm == 1.0
    losses = {history.phase: history.losses for history in outcome.histories}
    suspects, clean = (np.isfinite(losses[name][0]) for name in ("unlearn 1", "relearn 1"))
    flagged = outcome.isolation.flagged.numpy()
    assert suspects.sum() == 29  # 32, of which 3 judge.
    assert not (suspects & ~flagged).any()
    assert clean.any()
    assert not (clean & flagged).any()
    assert (~suspects & ~clean & ~flagged).any()


HARM = Standing(0.7, (0.7,) * 4, 0.0, 0.4)


@pytest.mark.parametrize(
    ("judged", "patience", "used", "last"),
    [
        # The third round costs too much; the first was the best before it.
        ([(0.9, 0.6), (0.9, 0.7), HARM], 1, 1, "the last 1 of 3 rounds cost too much accuracy"),
        ([(0.9, 0.6), HARM, HARM], 2, 1, "the last 2 of 3 rounds cost too much accuracy"),
        # What one round costs the next one repairs, and then it counts from none.
        ([HARM, (0.9, 0.6), HARM, HARM], 2, 2, "the last 2 of 4 rounds cost too much accuracy"),
    ],
)
def test_the_figures_decide_which_round_is_used(run, monkeypatch, judged, patience, used, last):
    start = Standing(0.9, (0.9,) * 4, 1.0, 1.0)
    rounds = [row if isinstance(row, Standing) else Standing(row[0], (row[0],) * 4, row[1], row[1]) for row in judged]
    figures = iter([start, *rounds])
    kept = []

    def measured(model, data, parts, runtime):
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(figures)

    monkeypatch.setattr("antibackdoor.defences.dbr._standing", measured)
    outcome, phases = run(Dbr(signal="loss", share=0.2, patience=patience, unlearn_lr=0.01, unlearn_batch_size=8))
    assert phases[-1].name == f"relearn {len(judged)}"
    assert all(torch.equal(value, kept[used][name]) for name, value in outcome.model.state_dict().items())
    assert any(not torch.equal(value, kept[-1][name]) for name, value in outcome.model.state_dict().items())
    assert f"after round {used}," in outcome.isolation.evidence[-1]
    assert last in outcome.isolation.evidence[-1]


def test_a_round_that_is_done_is_used_and_the_last(run, monkeypatch):
    figures = iter(
        [
            Standing(0.9, (0.9,) * 4, 1.0, 1.0),
            Standing(0.9, (0.9,) * 4, 0.0, 1.0),  # Moved to another class: a greater gain, but not forgotten.
            Standing(0.9, (0.9,) * 4, 0.1, 0.4),
        ]
    )
    monkeypatch.setattr("antibackdoor.defences.dbr._standing", lambda *given: next(figures))
    outcome, phases = run(Dbr(signal="loss", share=0.2, largest=0.6, unlearn_lr=0.01, unlearn_batch_size=8))
    assert phases[-1].name == "relearn 2"
    assert "after round 2," in outcome.isolation.evidence[-1]
    assert "round 2 met the stop rule" in outcome.isolation.evidence[-1]


def test_suspects_that_are_not_learned_are_not_unlearned(run, monkeypatch):
    monkeypatch.setattr("antibackdoor.defences.dbr._standing", lambda *given: Standing(0.9, (0.9,) * 4, 0.8, 0.8))
    outcome, phases = run(Dbr(signal="loss", share=0.2))
    scanned, _ = run(Dbr(signal="loss", share=0.2), "scan")
    assert [phase.name for phase in phases] == ["train"]
    assert same_weights(outcome, scanned)
    assert "Nothing was unlearned" in outcome.isolation.evidence[-1]


def test_a_single_suspect_is_not_unlearned(run):
    outcome, phases = run(Dbr(signal="loss", share=0.001))
    assert [phase.name for phase in phases] == ["train"]
    assert "Nothing was unlearned: of 0 suspects" in outcome.isolation.evidence[-1]


def test_a_loss_that_is_not_finite_leaves_the_last_good_round(run):
    defence = Dbr(signal="loss", share=0.2, learnt=0.01, unlearn_lr=1e30, unlearn_batch_size=8)
    outcome, _ = run(defence)
    scanned, _ = run(defence, "scan")
    assert outcome.histories[-1].stopped
    assert same_weights(outcome, scanned)
    assert "not finite" in outcome.isolation.evidence[-1]


@pytest.mark.parametrize("phase", ["unlearn 1", "relearn 2"])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(run, checkpoint_dir, phase):
    whole, _ = run(ALWAYS)
    with pytest.raises(KeyboardInterrupt):
        run(ALWAYS, before=phase, folder=checkpoint_dir)
    for _ in range(2):  # Resumed, and then finished already.
        resumed, _ = run(ALWAYS, folder=checkpoint_dir)
        assert same_weights(resumed, whole)
        assert resumed.isolation.evidence == whole.isolation.evidence
        assert [history.phase for history in resumed.histories] == [history.phase for history in whole.histories]


def test_rounds_take_a_backdoor_out_and_keep_the_classes(run, blobs, runtime):
    test = planted(blobs, 200, 0.7, 9)
    defence = Dbr(share=0.06, clean_share=0.4, hold_out=0.2, unlearn_lr=3e-3, unlearn_batch_size=4, relearn_lr=1e-2)
    before, _ = run(defence, "scan", count=600, epochs=12)
    after, _ = run(defence, count=600, epochs=12)
    assert attack_success(before, test, runtime) > 0.9
    assert attack_success(after, test, runtime) < 0.5
    assert clean_accuracy(after, test, runtime) > 0.9
