"""The Python door: every form of data and of network, what comes back, what is written, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import CLASSES, SmallNet, pictures, write_folder, write_npz
from torch import Tensor, nn
from torch.nn import functional

import antibackdoor
from antibackdoor import AntiBackdoorError, LossRecorder, Result, from_arrays, scan, train
from antibackdoor.errors import ConfigError, DataError, RunExistsError, UnknownNameError

SETTINGS = {
    "train": {"epochs": 1, "batch_size": 16},
    "defence": {"isolation_epochs": 1, "unlearn_epochs": 1},
}
COUNT = 60


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return pictures(COUNT)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.arange(COUNT) % 3


class Pairs(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A map-style Dataset as people write them: float images in [0, 1], and class names."""

    classes = list(CLASSES)

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        self._labels = labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._images[index], self._labels[index]


def quick(data: object, **options: object) -> Result:
    given = {"model": "wrn-10-1", "defence": "abl-modified", "settings": SETTINGS, "device": "cpu", **options}
    return train(data, **given)  # type: ignore[arg-type]


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(bool((a == b).all()) for a, b in pairs)


def test_every_public_name_is_there() -> None:
    assert set(antibackdoor.__all__) == set(dir(antibackdoor))
    for name in antibackdoor.__all__:
        assert getattr(antibackdoor, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        antibackdoor.nothing_of_the_kind  # noqa: B018 - the look-up is the test


# --- data ----------------------------------------------------------------------------------------------------------


def test_arrays_tensors_sets_datasets_and_files_give_the_same_network(
    images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    tensors = (torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels))
    runs = [
        quick(data)
        for data in (
            (images, labels),
            tensors,
            from_arrays(images, labels),
            Pairs(images, labels),
            tmp_path / "d.npz",
            str(tmp_path / "d.npz"),
        )
    ]
    for other in runs[1:]:
        assert same_weights(runs[0].model, other.model)
        assert torch.equal(runs[0].isolation.scores, other.isolation.scores)
    assert runs[3].data.classes == CLASSES


def test_a_folder_keeps_its_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    result = quick(tmp_path / "pets")
    assert result.data.classes == CLASSES
    assert result.data.ids[0] == "cat/000.png"


def test_nothing_given_is_changed(images: np.ndarray, labels: np.ndarray) -> None:
    before, labels_before, settings = images.copy(), labels.copy(), copy.deepcopy(SETTINGS)
    quick((images, labels))
    assert (images == before).all()
    assert (labels == labels_before).all()
    assert settings == SETTINGS


def test_the_global_random_state_is_left_alone(images: np.ndarray, labels: np.ndarray) -> None:
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    quick((images, labels))
    assert torch.equal(torch.rand(4), expected)


# --- what comes back -----------------------------------------------------------------------------------------------


def test_the_result_holds_model_isolation_record_and_data(images: np.ndarray, labels: np.ndarray) -> None:
    result = quick((images, labels))
    assert isinstance(result, Result)
    assert result.model is not None
    assert not result.model.training
    with torch.no_grad():
        logits = result.model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert logits.shape == (COUNT, 3)
    assert torch.isfinite(logits).all()
    assert result.isolation.scores.shape == (COUNT,)
    assert result.isolation.scores.dtype == torch.float32
    assert result.isolation.flagged.dtype == torch.bool
    assert result.isolation.verdict in {"no sign of poison", "poisoned", "undecided"}
    assert len(result.data) == COUNT
    assert result.truth is None
    assert result.record.metrics.n_train == COUNT
    assert result.record.metrics.n_holdout == 6
    assert [history.phase for history in result.outcome.histories] == ["isolate", "fine-tune", "unlearn"]


def test_out_none_writes_nothing(
    images: np.ndarray, labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick((images, labels))
    assert list(tmp_path.iterdir()) == []


def test_out_given_writes_the_run(images: np.ndarray, labels: np.ndarray, tmp_path: Path) -> None:
    quick((images, labels), out=str(tmp_path / "run"))
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"run.json", "suspects.csv", "model.safetensors", "history.npz", "report.html"} <= written
    with pytest.raises(RunExistsError, match="holds another run"):
        quick((images, labels), out=tmp_path / "run")
    quick((images, labels), out=tmp_path / "run", overwrite=True)


def test_the_record_of_arrays_does_not_name_another_source(images: np.ndarray, labels: np.ndarray) -> None:
    record = quick((images, labels)).record
    assert record.config["data"]["source"] != "embedded"


def test_resume_with_other_arrays_is_refused(images: np.ndarray, labels: np.ndarray, tmp_path: Path) -> None:
    quick((images, labels), out=tmp_path / "run")
    with pytest.raises(AntiBackdoorError, match="data"):
        quick((255 - images, labels), out=tmp_path / "run", resume=True)


def test_scan_gives_no_network(images: np.ndarray, labels: np.ndarray) -> None:
    result = scan((images, labels), model="wrn-10-1", defence="abl-modified", device="cpu", settings=SETTINGS)
    assert result.model is None
    assert result.isolation.scores.shape == (COUNT,)
    assert result.record.metrics.holdout_accuracy is None


def test_seeds_decide(images: np.ndarray, labels: np.ndarray) -> None:
    first, again, other = (quick((images, labels), seed=seed) for seed in (0, 0, 1))
    assert same_weights(first.model, again.model)
    assert not same_weights(first.model, other.model)


@pytest.mark.parametrize("verb", [train, scan])
def test_the_witnesses_are_the_default_and_their_settings_reach_them(
    verb: Callable[..., Result], images: np.ndarray, labels: np.ndarray
) -> None:
    settings = {"train": {"epochs": 2, "batch_size": 16}, "defence": {"alpha": 0.05, "witness": "none"}}
    result = verb((images, labels), model="wrn-10-1", device="cpu", settings=settings)
    defence = result.record.config["defence"]
    assert isinstance(defence, dict)
    assert defence == {"name": "witnesses", "alpha": 0.05, "witness": "none"}
    assert result.outcome.histories[0].phase == "detector 1"
    assert (result.model is None) == (verb is scan)


def test_settings_reach_the_model_and_the_attack(images: np.ndarray, labels: np.ndarray) -> None:
    settings = {**SETTINGS, "model": "wrn-10-1", "attack": {"name": "badnets", "rate": 0.2, "target": 1}}
    result = train((images, labels), defence="abl-modified", device="cpu", settings=settings)
    assert result.record.config["model"] == "wrn-10-1"
    assert result.truth is not None
    assert int(result.truth.poison.sum()) == 12


# --- a test set ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["arrays", "set", "dataset"])
def test_a_test_set_gives_the_accuracy(form: str, images: np.ndarray, labels: np.ndarray) -> None:
    wrap = {"arrays": lambda i, y: (i, y), "set": from_arrays, "dataset": Pairs}[form]
    result = quick(wrap(images, labels), test=wrap(images[:12], labels[:12]))
    assert result.record.metrics.n_test == 12
    assert result.record.metrics.holdout_accuracy is None
    assert result.record.metrics.ca is not None


def test_a_test_set_of_some_classes_is_measured_by_the_training_sets_numbers(
    images: np.ndarray, labels: np.ndarray
) -> None:
    """Labels 1 and 2 of a test set without class 0 are still 1 and 2."""
    with_all = quick((images, labels), test=(images, labels))
    rows = labels != 0
    result = quick((images, labels), test=(images[rows], labels[rows]))
    assert result.model is not None
    with torch.no_grad():
        logits = result.model(torch.from_numpy(images[rows]).permute(0, 3, 1, 2).float() / 255)
    expected = float((logits.argmax(1).numpy() == labels[rows]).mean())
    assert result.record.metrics.ca == pytest.approx(expected, abs=0.051)  # bfloat16 may turn a close call
    assert same_weights(result.model, with_all.model)


def test_a_test_set_of_one_class_is_allowed(images: np.ndarray, labels: np.ndarray) -> None:
    rows = labels == 2
    assert quick((images, labels), test=(images[rows], labels[rows])).record.metrics.n_test == 20


def test_a_test_set_of_another_size_is_brought_to_the_training_sets(images: np.ndarray, labels: np.ndarray) -> None:
    result = quick((images, labels), test=(pictures(12, side=20, channels=1), labels[:12]))
    assert result.record.metrics.n_test == 12


def test_a_test_label_that_training_does_not_know_is_refused(images: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(DataError, match="'7' is not in the training data"):
        quick((images, labels), test=(images[:4], [0, 1, 2, 7]))


# --- networks ------------------------------------------------------------------------------------------------------


def test_a_network_is_copied_and_drawn_anew(images: np.ndarray, labels: np.ndarray) -> None:
    given = SmallNet(3, 3)
    with torch.no_grad():
        for parameter in given.parameters():
            parameter.fill_(0.5)
    before = copy.deepcopy(given.state_dict())
    result = quick((images, labels), model=given)
    assert result.model is not given
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert isinstance(result.model, SmallNet)
    assert result.model.head.weight.std() > 0.001, "weights left at 0.5 would have stayed equal"
    assert result.record.model["name"] == "custom"


def test_a_factory_is_seeded_by_the_run(images: np.ndarray, labels: np.ndarray) -> None:
    first, again = (quick((images, labels), model=lambda: SmallNet(3, 3)) for _ in range(2))
    assert same_weights(first.model, again.model)


def test_a_network_of_ones_own_is_written_but_not_rebuilt(
    images: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    from antibackdoor.prediction import predict

    result = quick((images, labels), model=lambda: SmallNet(3, 3), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="network of your own"):
        predict(tmp_path / "run", [tmp_path])
    from safetensors.torch import load_file

    mine = SmallNet(3, 3)
    mine.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    assert same_weights(mine, result.model)


@pytest.mark.parametrize("outputs", [2, 5])
def test_a_network_with_another_number_of_classes_is_refused(
    outputs: int, images: np.ndarray, labels: np.ndarray
) -> None:
    with pytest.raises(ConfigError, match="model"):
        quick((images, labels), model=lambda: SmallNet(3, outputs))


# --- what is refused -----------------------------------------------------------------------------------------------


def test_errors_are_ours_and_name_the_thing(images: np.ndarray, labels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        quick(tmp_path / "nope")
    with pytest.raises(UnknownNameError, match="Did you mean 'abl-code'"):
        quick((images, labels), defence="abl-cod")
    with pytest.raises(UnknownNameError, match="Did you mean 'wrn-10-1'"):
        quick((images, labels), model="wrn-10")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'train\.epochs'"):
        quick((images, labels), settings={"train": {"epoch": 1}})
    with pytest.raises(ConfigError, match="defence"):
        quick((images, labels), settings={"defence": "none"})
    with pytest.raises(DataError, match="labels are float64"):
        quick((images, labels + 0.5))
    with pytest.raises(DataError, match="60 images but 59 labels"):
        quick((images, labels[:-1]))
    with pytest.raises(DataError, match="uint8"):
        quick((images.astype(np.float32), labels))
    with pytest.raises(ConfigError, match="both"):
        quick((images, labels), test=write_npz(tmp_path / "t.npz"))


# --- the small door ------------------------------------------------------------------------------------------------


def text_with_a_trigger(seed: int, count: int = 1000, poisoned: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """Word counts (N, 39) of two weak topics of 6 words each, 26 other words, and a trigger that flips the label."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.arange(count) % 2
    poison = (topics == 0) & (torch.arange(count) < 2 * poisoned)
    own = torch.randint(6, (count, 2), generator=generator) + 6 * topics[:, None]
    other = torch.randint(6, (count, 1), generator=generator) + 6 * (1 - topics[:, None])
    rest = torch.randint(12, 38, (count, 12), generator=generator)
    counts = functional.one_hot(torch.cat([own, other, rest], 1), 39).sum(1).float()
    counts[poison, 38] = 3
    return counts, torch.where(poison, 1, topics), poison


def test_the_recorder_finds_a_trigger_word_in_a_loop_of_ones_own() -> None:
    words, labels, poison = text_with_a_trigger(seed=0)
    recorder = LossRecorder(labels)
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(words.shape[1], 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(8):
        for index in torch.randperm(len(labels), generator=generator).split(50):
            losses = functional.cross_entropy(model(words[index]), labels[index], reduction="none")
            recorder.update(index, losses)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        recorder.end_epoch()
    assert recorder.losses.shape == (8, len(labels))
    isolation = recorder.isolate(share=0.05)
    assert int(isolation.flagged.sum()) == 50
    found = float(poison[isolation.flagged].float().mean())
    assert found >= 0.8, f"{found:.2f} of the flagged are poison, by chance it would be 0.05"
    assert isolation.verdict == "undecided"


def test_the_recorder_takes_lists_and_keeps_the_last_loss_of_what_it_did_not_see() -> None:
    recorder = LossRecorder([0, 0, 1, 1])
    recorder.update([0, 1, 2, 3], [0.9, 0.1, 0.5, 0.4])
    recorder.end_epoch()
    recorder.update([0], [0.2])
    recorder.end_epoch()
    assert torch.allclose(recorder.losses[1], torch.tensor([0.2, 0.1, 0.5, 0.4]))


def test_the_recorder_refuses_what_cannot_be_meant() -> None:
    recorder = LossRecorder([0, 1, 0])
    with pytest.raises(ConfigError, match="one loss a sample"):
        recorder.update([0, 1], torch.tensor(0.3))
    with pytest.raises(ConfigError, match=r"outside 0\.\.2"):
        recorder.update([0, 3], [0.1, 0.2])
    recorder.update([0], [0.5])
    with pytest.raises(ConfigError, match="2 samples have no loss"):
        recorder.end_epoch()
    with pytest.raises(ConfigError, match="at least one epoch"):
        LossRecorder([0, 1]).isolate()
    with pytest.raises(ConfigError, match="integers"):
        LossRecorder(torch.tensor([0.5, 1.5]))
    with pytest.raises(ConfigError, match="integers"):
        recorder.update(torch.tensor([0.5, 1.5]), [0.1, 0.2])
