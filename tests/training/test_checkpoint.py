"""Kill a run anywhere, resume it, and nothing differs from a run that was not killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from antibackdoor.defences import DEFENCES
from antibackdoor.defences.witnesses import observe
from antibackdoor.errors import StorageError
from antibackdoor.ops.objectives import ce
from antibackdoor.progress import Bar, Silent
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Phase, Trainer, TrainPlan, logits_of, mean_loss

# 48 images of which 8 are held out, in batches of 8: an epoch has five batches, and its bar a sixth call, for the note.
CALLS = 6
PLAN = TrainPlan(epochs=3, batch_size=8, lr=0.05, schedule="onecycle", augment=("crop", "flip"))
PHASES = {
    "none": {"train": 3},
    "abl-modified": {"isolate": 2, "fine-tune": 3, "unlearn": 2},
    "abl-code": {"isolate": 2, "fine-tune": 2, "fine-tune 2": 1, "unlearn": 2},
    "abl-paper": {"isolate": 1, "joint": 2, "joint 2": 1},
    "cbd": {"biased 1": 1, "biased 2": 1, "train": 3},
    "d-br": {"train": 3, "unlearn 1": 1, "relearn 1": 1, "unlearn 2": 1, "relearn 2": 1},
    "witnesses": {"detector 1": 1, "detector 2": 1, "train": 3},
    "witnesses, alarmed": {"detector 1": 1, "detector 2": 1, "retrain 0": 4},
}
PARAMS = {
    "none": {},
    "abl-modified": {
        "isolation_epochs": 2,
        "unlearn_epochs": 2,
        "unlearn_batch_size": 8,
        "share": 0.2,
        "signal": "loss",
        "isolation_lr": 0.05,
        "anchors": 9,
    },
    "abl-code": {
        "isolation_epochs": 2,
        "tune_epochs": 3,
        "tune_milestones": (2,),
        "unlearn_epochs": 2,
        "batch_size": 4,
        "share": 0.4,
        "lr": 0.05,
        "unlearn_lr": 1e-3,
    },
    "abl-paper": {
        "epochs": 4,
        "turning_epoch": 1,
        "milestones": (3,),
        "batch_size": 8,
        "share": 0.2,
        "lr": 0.01,
        "cap": 2.0,
    },
    "cbd": {"biased_epochs": 2, "certain_loss": 1e-6, "share": 0.2},
    "d-br": {
        "rounds": 2,
        "share": 0.3,
        "clean_share": 0.7,
        "learnt": 0.01,
        "harm": 0.9,
        "unlearn_batch_size": 4,
        "unlearn_lr": 1e-4,
        "relearn_lr": 1e-4,
    },
    "witnesses": {"witness": "none"},
    "witnesses, alarmed": {"witness": "none", "alpha": 0.99},
}
# Witnesses look at classes of 40 images or more.
SIZES = {"witnesses, alarmed": (100, 2)}


class Killer(Silent):
    """Stops the work with Ctrl-C at one call of one bar."""

    def __init__(self, phase: str, call: int) -> None:
        self.phase, self.left, self.killed = phase, call, False

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Bar]:
        yield _KillerBar(self, title)


class _KillerBar:
    def __init__(self, killer: Killer, title: str) -> None:
        self.killer, self.title = killer, title

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self.title != self.killer.phase:
            return
        if self.killer.left == 0:
            self.killer.killed = True
            raise KeyboardInterrupt
        self.killer.left -= 1


class Setting:
    def __init__(self, runtime, tiny, blobs, folder):
        self.runtime, self.tiny, self.blobs, self.folder = runtime, tiny, blobs, folder
        self.use(48, 4)

    def use(self, count, classes):
        self.data = self.blobs(count, classes, channels=1, height=16, width=16)
        self.build = self.tiny(self.data, dropout=0.2)
        self.held_out = torch.zeros(count, dtype=torch.bool)
        self.held_out[::6] = True

    def run(self, name, *, folder=None, progress=None, resume=True):
        if name in SIZES:
            self.use(*SIZES[name])
        seeds = Seeds(4)
        checkpoints = Checkpoints(folder, resume=resume) if folder else None
        trainer = Trainer(
            self.runtime, seeds, held_out=self.held_out, checkpoints=checkpoints, progress=progress or Silent()
        )
        defence = DEFENCES.build(name.split(",")[0], PARAMS[name])
        return defence.run(self.data, build_model=self.build, fit=trainer, plan=PLAN, seeds=seeds)


@pytest.fixture(scope="module", autouse=True)
def _short_detector():
    """Each of its epochs is a phase; two tell as much as all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observe, "EPOCHS", 2)
        yield


@pytest.fixture
def setting(runtime, tiny, blobs, checkpoint_dir):
    return Setting(runtime, tiny, blobs, checkpoint_dir)


def assert_same(outcome, expected):
    got, wanted = outcome.model.state_dict(), expected.model.state_dict()
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []
    assert [history.phase for history in outcome.histories] == [history.phase for history in expected.histories]
    for one, two in zip(outcome.histories, expected.histories, strict=True):
        assert np.array_equal(one.losses, two.losses, equal_nan=True)
        assert np.array_equal(one.accuracy, two.accuracy)
        assert one.stopped == two.stopped
    assert torch.equal(outcome.isolation.flagged, expected.isolation.flagged)
    assert torch.equal(outcome.isolation.scores, expected.isolation.scores)
    assert outcome.isolation.verdict == expected.isolation.verdict


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def uninterrupted(setting, known):
    """Gives the outcome of a run that nothing stops, made once a defence; not to be changed."""

    def call(name):
        if name not in known:
            known[name] = setting.run(name)
        return known[name]

    return call


@pytest.mark.parametrize("name", PHASES)
def test_the_phases_are_those_that_are_killed_below(uninterrupted, name):
    outcome = uninterrupted(name)
    assert {history.phase: len(history.seconds) for history in outcome.histories} == PHASES[name]
    assert not any(history.stopped for history in outcome.histories)


every_phase = pytest.mark.parametrize(
    ("name", "phase"), [(name, phase) for name, phases in PHASES.items() for phase in phases]
)


@pytest.fixture
def dies(setting, uninterrupted):
    """Kills a run at calls of a phase's bar, and resumes it each time; all of them, or those of unlike kinds."""

    def call(name, phase, *, everywhere):
        expected = uninterrupted(name)
        counter = Killer(phase, 10**6)
        setting.run(name, progress=counter)
        calls, epochs = 10**6 - counter.left, PHASES[name][phase]
        # Every batch, and the note after every epoch, when its checkpoint has been written.
        # A detector has a plan of its own: these few images are two batches.
        assert calls >= (3 if phase.startswith("detector") else 4) * epochs
        each = calls // epochs
        # The first batch, one in an epoch, the first note, what follows it, and the last note.
        some = {0, each // 2, each - 1, min(each, calls - 1), calls - 1}
        for at in range(calls) if everywhere else sorted(some):
            folder = setting.folder / str(at)
            with pytest.raises(KeyboardInterrupt):
                setting.run(name, folder=folder, progress=Killer(phase, at))
            assert_same(setting.run(name, folder=folder), expected)

    return call


@every_phase
def test_a_killed_run_goes_on_as_if_nothing_had_happened(dies, name, phase):
    dies(name, phase, everywhere=False)


@pytest.mark.slow
@every_phase
def test_a_run_killed_anywhere_goes_on_as_if_nothing_had_happened(dies, name, phase):
    dies(name, phase, everywhere=True)


@pytest.mark.parametrize("name", PHASES)
def test_a_run_killed_three_times(setting, uninterrupted, name):
    last = list(PHASES[name])[-1]
    for phase, call in ((next(iter(PHASES[name])), 2), (last, 0), (last, 3)):
        try:
            setting.run(name, folder=setting.folder, progress=Killer(phase, call))
        except KeyboardInterrupt:
            continue
    assert_same(setting.run(name, folder=setting.folder), uninterrupted(name))


@pytest.mark.parametrize("name", PHASES)
def test_a_finished_run_is_not_trained_again(setting, name):
    expected = setting.run(name, folder=setting.folder)
    killers = [Killer(phase, 0) for phase in PHASES[name]]
    for killer in killers:
        assert_same(setting.run(name, folder=setting.folder, progress=killer), expected)
    assert not any(killer.killed for killer in killers)


def test_without_resume_everything_starts_anew(setting):
    setting.run("none", folder=setting.folder)
    killer = Killer("train", 0)
    with pytest.raises(KeyboardInterrupt):
        setting.run("none", folder=setting.folder, progress=killer, resume=False)


@pytest.mark.parametrize("done", [True, False])
def test_a_phase_is_not_continued_with_other_images(done, setting):
    """As happens where what was suspected is told anew, and comes out otherwise."""

    def train(subset, progress=None):
        checkpoints = Checkpoints(setting.folder, resume=True)
        held_out, progress = setting.held_out, progress or Silent()
        trainer = Trainer(setting.runtime, Seeds(0), held_out=held_out, checkpoints=checkpoints, progress=progress)
        return trainer.fit(setting.build(Seeds(0).generator("init")), setting.data, Phase("train", PLAN), subset=subset)

    subset = torch.arange(len(setting.data)) % 4 > 0
    if done:
        train(subset)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(subset, Killer("train", 8))
    other = subset.clone()
    other[0] = other[4] = True
    with pytest.raises(StorageError, match="trained on other images"):
        train(other)
    same = subset.clone()
    same[setting.held_out] = True
    train(same)


def test_nothing_unfinished_is_left_in_the_folder(setting):
    setting.run("abl-modified", folder=setting.folder)
    assert sorted(path.name for path in setting.folder.iterdir()) == [
        "fine-tune.safetensors",
        "isolate.safetensors",
        "unlearn.safetensors",
    ]


def test_a_phase_that_stopped_early_stays_stopped(setting, checkpoint_dir):
    calls = []

    def objective(step):
        calls.append(1)
        return mean_loss(step) * (float("nan") if len(calls) > 5 else 1.0)

    def trained():
        model = setting.build(Seeds(0).generator("init"))
        checkpoints = Checkpoints(checkpoint_dir, resume=True)
        phase = Phase("train", PLAN, stop_on_nonfinite=True)
        trainer = Trainer(setting.runtime, Seeds(0), held_out=setting.held_out, checkpoints=checkpoints)
        return model.state_dict(), trainer.fit(model, setting.data, phase, objective=objective)

    weights, history = trained()
    count = len(calls)
    again, resumed = trained()
    assert len(calls) == count
    assert resumed.stopped == history.stopped is not None
    assert np.array_equal(resumed.losses, history.losses, equal_nan=True)
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_the_held_out_losses_of_a_resumed_run_are_its_networks(setting):
    with pytest.raises(KeyboardInterrupt):
        setting.run("none", folder=setting.folder, progress=Killer("train", CALLS + 1))
    outcome = setting.run("none", folder=setting.folder)
    losses = ce(logits_of(outcome.model, setting.data, setting.runtime), setting.data.labels)
    recorded = torch.from_numpy(outcome.histories[0].losses[-1])
    assert torch.allclose(recorded[setting.held_out], losses[setting.held_out], rtol=1e-4, atol=1e-5)


# --- what a checkpoint folder may hold ---------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def noise(path):
    path.write_bytes(np.random.default_rng(0).bytes(2000))


def header_only(path):
    path.write_bytes(path.read_bytes()[:200])


def without_metadata(path):
    save_file(load_file(path), path)


def without_history(path):
    tensors = {key: value for key, value in load_file(path).items() if not key.startswith("history/")}
    save_file(tensors, path, metadata={"phase": "train", "done": "true", "stopped": "null", "epochs": "3"})


def without_weights(path):
    tensors = {key: value for key, value in load_file(path).items() if not key.startswith("model/")}
    save_file(tensors, path, metadata={"phase": "train", "done": "true", "stopped": "null", "epochs": "3"})


@pytest.mark.parametrize("damage", [cut, empty, noise, header_only, without_metadata, without_history, without_weights])
def test_a_damaged_checkpoint_is_named(setting, damage):
    setting.run("none", folder=setting.folder)
    damage(setting.folder / "train.safetensors")
    with pytest.raises(StorageError, match="checkpoint"):
        setting.run("none", folder=setting.folder)


def test_a_folder_in_the_place_of_a_checkpoint(setting):
    (setting.folder / "train.safetensors").mkdir(parents=True)
    with pytest.raises(StorageError, match="checkpoint"):
        setting.run("none", folder=setting.folder)


def test_a_checkpoint_of_another_network(setting, tiny, blobs):
    setting.run("none", folder=setting.folder)
    setting.build = tiny(blobs(48, 5, channels=1))
    with pytest.raises(StorageError, match="'train' is of another network"):
        setting.run("none", folder=setting.folder)


@pytest.mark.parametrize("finished", [True, False])
def test_a_checkpoint_of_another_image_set(setting, blobs, finished):
    if finished:
        setting.run("none", folder=setting.folder)
    else:
        with pytest.raises(KeyboardInterrupt):
            setting.run("none", folder=setting.folder, progress=Killer("train", CALLS + 1))
    setting.data = blobs(54, 4, channels=1, height=16, width=16)
    setting.held_out = torch.zeros(54, dtype=torch.bool)
    with pytest.raises(StorageError, match="checkpoint"):
        setting.run("none", folder=setting.folder)


def test_a_full_disk(setting, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("antibackdoor.files.os.replace", full)
    with pytest.raises(StorageError, match=r"cannot write the checkpoint .*No space left"):
        setting.run("none", folder=setting.folder)
    assert list(setting.folder.iterdir()) == []


def test_a_folder_that_cannot_be_made(setting, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        setting.run("none", folder=tmp_path / "file" / "checkpoints")


def test_a_process_that_does_not_write_writes_nothing(setting):
    checkpoints = Checkpoints(setting.folder, resume=True, writes=False)
    model = setting.build(Seeds(0).generator("init"))
    Trainer(setting.runtime, Seeds(0), checkpoints=checkpoints).fit(model, setting.data, Phase("train", PLAN))
    assert not setting.folder.exists()


def test_phases_with_dots_in_their_names_are_kept_apart(setting, monkeypatch):
    partials, replace = [], os.replace

    def remembering(partial, path):
        partials.append(partial)
        replace(partial, path)

    monkeypatch.setattr(os, "replace", remembering)
    model = setting.build(Seeds(0).generator("init"))
    trainer = Trainer(setting.runtime, Seeds(0), checkpoints=Checkpoints(setting.folder, resume=True))
    for name in ("a.1", "a.2", "a"):
        trainer.fit(model, setting.data, Phase(name, PLAN.but(epochs=1)))
    assert len(set(partials)) == 3
    assert sorted(path.name for path in setting.folder.iterdir()) == [
        "a.1.safetensors",
        "a.2.safetensors",
        "a.safetensors",
    ]


def test_clearing_deletes_checkpoints_alone(tmp_path):
    folder = tmp_path / "checkpoints"
    Checkpoints(folder, resume=False).clear()
    folder.mkdir()
    for name in ("a.1.safetensors", "a.partial", "notes.txt"):
        (folder / name).write_text("")
    Checkpoints(folder, resume=False).clear()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    Checkpoints(folder, resume=False).clear()
    assert not folder.exists()
