"""What defences are given beside the observed data: in experiments, on data of one's own, in the record of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import invoke, pictures, write_folder, write_npz, write_poisoned_npz

from antibackdoor.config import PoisonConfig, RunConfig
from antibackdoor.data.sources import from_arrays
from antibackdoor.decisions import Decision, write_decisions
from antibackdoor.defences import DEFENCES, RepairDefence
from antibackdoor.defences.requirements import check_requirements, resolve_requirements
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.pipeline import limited, load_data, plant, run
from antibackdoor.progress import SILENT
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Runtime, Trainer

TRUSTED = [name for name in DEFENCES if DEFENCES.get(name).needs_trusted]
REPAIRS = [name for name in TRUSTED if not DEFENCES.get(name).can_scan]
RATED = [name for name in DEFENCES if DEFENCES.get(name).needs_rate]
FAST = (
    *("--device", "cpu", "--model", "wrn-10-1", "--epochs", "1", "--quiet", "--set", "train.batch_size=16"),
    *("--set", "train.augment=[]"),
)
SHORT = {
    "fine-pruning": {"tune_updates": 2, "batch_size": 8},
    "mcr": {"tune_updates": 2, "curve_updates": 2, "batch_size": 8},
    "nad": {"tune_updates": 2, "updates": 2, "first_lr": 0.01, "batch_size": 8},
}


def short(name):
    return [part for key, value in SHORT.get(name, {}).items() for part in ("--set", f"defence.{key}={value}")]


def config(name, source="x", attack=True, rate=0.2, params=None, **data):
    values = {
        "data": {"source": str(source), **data},
        "defence": {"name": name, **SHORT.get(name, {}), **(params or {})},
        "model": "wrn-10-1",
        "train": {"epochs": 1, "batch_size": 16, "augment": []},
        "device": "cpu",
    }
    if attack:
        values["attack"] = {"name": "badnets", "rate": rate, "target": 0}
    return RunConfig.parse(values)


def defence_of(configured):
    return DEFENCES.build(configured.defence.name, configured.defence.params)


def images_of(data):
    return {image.numpy().tobytes() for image in data.images}


@pytest.fixture
def npz(tmp_path) -> Path:
    return write_npz(tmp_path / "data.npz", per_class=40)


def handed(configured, held_out=None, seed=0):
    seeds = Seeds(seed)
    loaded = limited(load_data(configured.data, SILENT), configured.data, seeds)
    runtime = Runtime.create("cpu")
    planted = plant(configured.attack, loaded, lambda _: None, runtime, seeds)
    truth = planted.train if planted else None
    given = resolve_requirements(
        defence_of(configured), configured, loaded.train, truth=truth, held_out=held_out, seeds=seeds
    )
    return given, loaded.train, truth


def test_in_an_experiment_they_are_clean_copies_of_every_class_and_the_observed_set_is_as_it_was(npz):
    configured = config("nad", npz)
    given, clean, truth = handed(configured)
    trusted = given.trusted
    assert trusted is given.defence.trusted
    assert torch.bincount(trusted.labels).tolist() == [2, 2, 2]
    rows = [clean.ids.index(name.removeprefix("trusted/")) for name in trusted.ids]
    assert torch.equal(trusted.images, clean.images[rows])
    assert torch.equal(trusted.labels, clean.labels[rows])
    poisoned = images_of(truth.observed.select(truth.poison.nonzero().squeeze(1)))
    assert not images_of(trusted) & poisoned
    assert not set(trusted.ids) & set(truth.observed.ids)
    _, _, without = handed(config("none", npz))
    assert torch.equal(truth.observed.images, without.observed.images)
    assert torch.equal(truth.observed.labels, without.observed.labels)


def test_they_are_never_taken_from_what_is_observed(npz):
    # Nine tenths of the images are handed over, and more than half are poisoned: most are both.
    configured = config("nad", npz, rate=0.6, params={"trusted_share": 0.9})
    given, _, truth = handed(configured)
    poisoned = images_of(truth.observed.select(truth.poison.nonzero().squeeze(1)))
    assert len(poisoned) == 72
    assert len(given.trusted) == 108
    assert not images_of(given.trusted) & poisoned


def test_images_that_an_attack_added_are_not_among_them(npz, tmp_path):
    configured = config("nad", npz, params={"trusted_share": 0.9}, decisions=str(tmp_path / "d.csv"), holdout=0)
    configured = configured.model_copy(update={"attack": PoisonConfig(name="cba", rate=0.2, params={"target": 0})})
    truth = handed(configured)[2]
    ids = truth.observed.ids
    assert len(ids) == 120 + 24 + 48
    write_decisions(  # An image of the clean set is dropped, and one that was added.
        tmp_path / "d.csv", [Decision(ids[row], "drop") for row in (5, 130)]
    )
    done = run(configured)
    assert "This defence was given 107 trusted images" in " ".join(done.record.evidence)
    assert done.truth.made_of.tolist() == [row for n, row in enumerate(truth.made_of.tolist()) if n not in (5, 130)]


def test_held_out_images_are_not_among_them_and_a_seed_decides(npz):
    configured = config("nad", npz, params={"trusted_share": 0.3})
    held_out = torch.zeros(120, dtype=torch.bool)
    held_out[:78] = True  # 14 of each class are left, and 12 are wanted
    given, clean, _ = handed(configured, held_out)
    allowed = {f"trusted/{clean.ids[row]}" for row in (~held_out).nonzero().squeeze(1).tolist()}
    assert set(given.trusted.ids) <= allowed
    assert torch.bincount(given.trusted.labels).tolist() == [12, 12, 12]
    again, other = handed(configured, held_out)[0], handed(configured, held_out, seed=1)[0]
    assert given.trusted.ids == again.trusted.ids != other.trusted.ids


def test_a_defence_that_needs_nothing_is_handed_nothing(npz):
    given, _, _ = handed(config("witnesses", npz))
    assert (given.trusted, given.evidence) == (None, ())
    assert given.defence == defence_of(config("witnesses"))


def test_images_of_ones_own_are_brought_to_the_shape_and_the_classes_of_the_data(tmp_path):
    data = write_folder(tmp_path / "data", per_class=10)
    # Fewer channels, another size, classes by name in a file.
    names = np.array(["dog", "cat", "owl"])
    images = pictures(9, 3, side=20, channels=1)
    np.savez(tmp_path / "trusted.npz", images=images, labels=np.arange(9) % 3, classes=names)
    given, clean, _ = handed(config("fine-pruning", data, attack=False, trusted=str(tmp_path / "trusted.npz")))
    assert given.trusted.shape == clean.shape == (3, 12, 12)
    assert given.trusted.classes == ("cat", "dog", "owl")
    assert given.trusted.labels.tolist() == [1, 0, 2] * 3
    assert given.evidence == (f"This defence was given 9 trusted images, those of {tmp_path / 'trusted.npz'}.",)


def test_named_images_win_over_copies_in_an_experiment(npz, tmp_path):
    named = write_npz(tmp_path / "trusted.npz", per_class=5, seed=7)
    given, _, _ = handed(config("nad", npz, trusted=str(named)))
    assert len(given.trusted) == 15
    assert "those of" in given.evidence[0]


def test_a_class_without_a_trusted_image_is_named(npz, tmp_path):
    np.savez(tmp_path / "few.npz", images=pictures(4, 2), labels=np.arange(4) % 2)
    with pytest.raises(DataError, match="no trusted image of class '2'"):
        handed(config("nad", npz, attack=False, trusted=str(tmp_path / "few.npz")))


@pytest.mark.parametrize("name", RATED)
def test_the_true_rate(name, npz):
    given, _, truth = handed(config(name, npz))
    assert given.defence.rate == int(truth.poison.sum()) / 120 == 0.2
    assert given.evidence == ("This defence was given the true rate of poison, 20 % of the images.",)
    given, _, _ = handed(config(name, npz, attack=False, trusted="own:train"))
    assert given.defence.rate == 0.0
    configured = config(name, npz, attack=False, params={"rate": 0.03})
    given, _, _ = handed(configured)
    assert given.defence.rate == 0.03
    assert given.evidence == ("This defence was told that 3 % of the images is poison.",)


def test_what_is_missing_is_said_before_any_data_are_read():
    # The source does not exist; nobody asks for it.
    for name in TRUSTED:
        own = config(name, "/nope", attack=False)
        with pytest.raises(
            ConfigError, match=f"^defence.name: {name} needs trusted images; give --set data.trusted=DIR"
        ):
            check_requirements(defence_of(own), own, scan_only=False)
        for fine in (config(name), config(name, attack=False, trusted="own:train")):
            check_requirements(defence_of(fine), fine, scan_only=False)
            if name not in REPAIRS:
                check_requirements(defence_of(fine), fine, scan_only=True)
                continue
            with pytest.raises(ConfigError, match=f"^defence.name: {name} repairs a network .* cannot scan"):
                check_requirements(defence_of(fine), fine, scan_only=True)
    for name in RATED:
        own = config(name, "/nope", attack=False)
        with pytest.raises(ConfigError, match="^defence.rate: .* give --set defence.rate=0.01"):
            check_requirements(defence_of(own), own, scan_only=True)
        check_requirements(defence_of(config(name)), config(name), scan_only=True)


def assert_one_line(done, *named):
    assert done.code == 2, done
    assert len(done.err.strip().splitlines()) == 1, done.err
    for text in named:
        assert text in done.err


@pytest.mark.parametrize("name", REPAIRS)
def test_on_data_of_ones_own_the_command_asks_for_trusted_images(name, npz, tmp_path):
    done = invoke("train", npz, "--out", tmp_path / "run", "--defence", name, *FAST)
    assert_one_line(done, f"{name} needs trusted images", "--set data.trusted=DIR")
    done = invoke("scan", npz, "--out", tmp_path / "run", "--defence", name, *FAST)
    assert_one_line(done, f"{name} repairs a network", "cannot scan")
    done = invoke(
        "train", npz, "--out", tmp_path / "run", "--defence", name, *FAST, "--set", "data.trusted=/nope/trusted"
    )
    assert_one_line(done, "/nope/trusted")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted({*TRUSTED} - {*REPAIRS}))
def test_a_scan_asks_for_trusted_images_and_says_that_it_was_given_them(name, npz, tmp_path):
    done = invoke("scan", npz, "--out", tmp_path / "run", "--defence", name, *FAST)
    assert_one_line(done, f"{name} needs trusted images", "--set data.trusted=DIR")
    trusted = write_npz(tmp_path / "trusted.npz", per_class=4, seed=3)
    given = ("--set", f"data.trusted={trusted}")
    done = invoke("scan", npz, "--out", tmp_path / "run", "--defence", name, *FAST, *short(name), *given)
    assert done.code in {0, 1}, done
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert any(sentence.startswith("This defence was given 12 trusted images, ") for sentence in record["evidence"])


@pytest.mark.parametrize("name", RATED)
def test_on_data_of_ones_own_the_command_asks_for_the_rate(name, npz, tmp_path):
    for command in ("train", "scan"):
        done = invoke(command, npz, "--out", tmp_path / "run", "--defence", name, *FAST)
        assert_one_line(done, "defence.rate", name, "--set defence.rate=0.01")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", REPAIRS)
def test_with_trusted_images_the_command_repairs_and_the_record_says_so(name, tmp_path):
    bad = write_poisoned_npz(tmp_path / "bad.npz", per_class=20, poisoned=6)
    trusted = write_npz(tmp_path / "trusted.npz", per_class=4, seed=3)
    run_folder = tmp_path / "run"
    given = ("--set", f"data.trusted={trusted}")
    done = invoke("train", bad, "--out", run_folder, "--defence", name, *FAST, *short(name), *given)
    assert done.code == 0, done
    record = json.loads((run_folder / "run.json").read_text())
    assert record["config"]["data"]["trusted"] == str(trusted)
    assert record["verdict"] == "undecided"
    assert record["metrics"]["n_flagged"] == 0
    assert any(sentence.startswith("This defence was given 12 trusted images, ") for sentence in record["evidence"])
    assert any("isolates nothing" in sentence for sentence in record["evidence"])
    predicted = invoke("predict", run_folder, write_folder(tmp_path / "new", 1), "--out", tmp_path / "p.csv", "--quiet")
    assert predicted.code == 0, "the repaired network is an ordinary one"
    # Other trusted images make another run.
    write_npz(trusted, per_class=4, seed=4)
    again = invoke("train", bad, "--out", run_folder, "--defence", name, *FAST, *short(name), *given, "--resume")
    assert_one_line(again, "trusted content")


def test_an_experiment_records_what_was_given(npz):
    result = run(config("fine-pruning", npz))
    assert result.record.config["defence"]["trusted_share"] == 0.05
    assert "trusted" not in result.record.config["defence"]
    sentence = "This defence was given 6 trusted images, 5 % of the training images as they were before any attack."
    assert sentence in result.record.evidence
    result = run(config("spectral", npz), scan_only=True)
    assert result.record.config["defence"]["rate"] == pytest.approx(0.2)
    assert "This defence was given the true rate of poison, 20 % of the images." in result.record.evidence


class Stop(Exception):
    pass


class Stopping:
    """Progress that ends everything in the second epoch of one phase."""

    def __init__(self, phase):
        self.phase = phase

    def bar(self, title, total, unit):
        return StoppingBar(title == self.phase)

    def say(self, line):
        pass


class StoppingBar:
    def __init__(self, here):
        self.here, self.epochs = here, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def advance(self, steps=1, note=""):
        if self.here and self.epochs:
            raise Stop
        self.epochs += steps == 0


PHASES = {
    "fine-pruning": ("train", "fine-tune"),
    "mcr": ("train", "second end", "curve"),
    "nad": ("train", "teacher 2", "distil 2"),
}


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_stopped_in_every_phase_ends_like_one_that_was_not(name, runtime, tiny, plan, tmp_path):
    data = from_arrays(pictures(48, 3), np.arange(48) % 3)
    trusted = from_arrays(pictures(18, 3, seed=1), np.arange(18) % 3)
    lengths = {"tune_updates": 9, "updates": 9, "curve_updates": 9, "batch_size": 6}
    known = {key: value for key, value in lengths.items() if key in DEFENCES.get(name).__dataclass_fields__}
    defence = DEFENCES.build(name, known)
    assert isinstance(defence, RepairDefence)

    def outcome(checkpoints, progress=SILENT):
        seeds = Seeds(0)
        trainer = Trainer(runtime, seeds, checkpoints=checkpoints, progress=progress)
        return defence.with_trusted(trusted).run(data, build_model=tiny(data), fit=trainer, plan=plan, seeds=seeds)

    whole = outcome(None)
    for phase in PHASES[name]:
        with pytest.raises(Stop):
            outcome(Checkpoints(tmp_path / "checkpoints", resume=True), Stopping(phase))
    resumed = outcome(Checkpoints(tmp_path / "checkpoints", resume=True))
    weights = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert resumed.isolation.evidence == whole.isolation.evidence
    assert [history.phase for history in resumed.histories] == [history.phase for history in whole.histories]
