"""Methods and plans given as objects say what names and settings say; what is shown of values is short."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import pictures
from torch import nn

from antibackdoor import ATTACKS, DEFENCES, scan, train
from antibackdoor.attacks import BadNets
from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.config import RunConfig, TrainConfig
from antibackdoor.defences import AblModified, NoDefence, Witnesses
from antibackdoor.errors import ConfigError
from antibackdoor.training import TrainPlan
from antibackdoor.typed import sections_of
from antibackdoor.types import History, Isolation, Metrics, Outcome, PoisonedSet, RunRecord

USAGE = Path(__file__).parents[1] / "docs" / "usage.md"
IMAGES, LABELS = pictures(60), np.arange(60) % 3


def sections(**given: object) -> dict[str, object]:
    plain = {"settings": None, "defence": "none", "attack": None, "plan": None, "decisions": None}
    return sections_of(**{**plain, "seed": 0, "device": "cpu", **given})  # type: ignore[arg-type]


def test_objects_and_names_give_the_same_run() -> None:
    plan = TrainPlan(epochs=1, batch_size=16, augment=("flip",))
    own = {"model": "wrn-10-1", "device": "cpu"}
    typed = train(
        (IMAGES, LABELS),
        defence=AblModified(isolation_epochs=1, unlearn_epochs=1),
        attack=BadNets(target=1, rate=0.2),
        plan=plan,
        **own,  # type: ignore[arg-type]
    )
    settings = {
        "train": {"epochs": 1, "batch_size": 16, "augment": ["flip"]},
        "defence": {"isolation_epochs": 1, "unlearn_epochs": 1},
        "attack": {"name": "badnets", "target": 1, "rate": 0.2},
    }
    named = train((IMAGES, LABELS), defence="abl-modified", settings=settings, **own)  # type: ignore[arg-type]
    assert typed.record.config == named.record.config
    assert typed.record.config["attack"]["rate"] == 0.2  # type: ignore[index, call-overload]
    assert typed.record.metrics == named.record.metrics
    assert torch.equal(typed.isolation.scores, named.isolation.scores)


def test_scan_takes_them_too() -> None:
    found = scan(
        (IMAGES, LABELS),
        defence=AblModified(isolation_epochs=1),
        attack="badnets",
        plan=TrainPlan(epochs=1, batch_size=16),
        model="wrn-10-1",
        device="cpu",
    )
    assert found.model is None
    assert found.record.metrics.n_poison == 6, "a tenth, as by default"
    assert found.record.config["train"]["epochs"] == 1  # type: ignore[index, call-overload]


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_can_be_an_object(name: str) -> None:
    assert RunConfig.parse(sections(defence=DEFENCES.build(name, {}))).defence.flat() == {"name": name}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_can_be_an_object_and_its_rate_is_no_setting_of_the_method(name: str) -> None:
    cls = ATTACKS.get(name)
    found = RunConfig.parse(sections(attack=cls(target=2, rate=0.05))).attack
    assert found is not None
    assert (found.name, found.params, found.rate) == (name, {"target": 2}, 0.05)
    usual = RunConfig.parse(sections(attack=cls())).attack
    assert usual is not None
    assert usual.rate == 0.1


def test_a_plan_is_taken_as_it_is() -> None:
    plan = TrainPlan(epochs=3, lr=0.2, momentum=0.8, schedule="cosine", warmup=0.1, ema=0.5, augment=("crop",))
    config = RunConfig.parse(sections(plan=plan, settings={"train": {"precision": "fp32"}}))
    assert TrainPlan(**config.train.resolved(tunes=False)) == plan
    assert config.train.precision == "fp32"
    assert {field.name for field in dataclasses.fields(TrainPlan)} - {"nesterov"} <= TrainConfig.model_fields.keys()


@dataclasses.dataclass(frozen=True)
class Unnamed(DirtyLabelAttack):
    """An attack that no table has."""

    def stamp(self, images: torch.Tensor, index: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Leave them as they are."""
        return images


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plan": TrainPlan(), "settings": {"train": {"epochs": 3}}}, r"argument `plan` says train\.epochs too"),
        ({"defence": Witnesses(alpha=0.05), "settings": {"defence": {"alpha": 0.1}}}, r"says defence\.alpha too"),
        ({"attack": BadNets(), "settings": {"attack": {"rate": 0.1}}}, r"says attack\.rate too"),
        ({"attack": BadNets(), "settings": {"attack": "badnets"}}, "its name is the argument `attack`"),
        ({"plan": TrainPlan(nesterov=True)}, "plan: nesterov is for stages of defences"),
        ({"attack": Unnamed()}, r"attack: Unnamed has no name here.*ATTACKS\.add\('mine', Unnamed\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sections(**given)


def test_settings_name_the_defence_where_the_argument_is_the_default() -> None:
    assert sections(defence="witnesses", settings={"defence": {"name": "none"}})["defence"] == {"name": "none"}
    assert sections(defence=NoDefence())["defence"] == {"name": "none"}


def test_a_rate_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"rate: must be in 0\.\.1, got 2"):
        BadNets(rate=2)
    with pytest.raises(ConfigError, match="rate"):
        ATTACKS.build("badnets", {"rate": 0.1})


def test_the_example_of_the_manual_runs() -> None:
    [code] = re.findall(
        r"```python\n(from antibackdoor import train\n.*?)```", USAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    for long, short in (("epochs=20", "epochs=1"), ('"limit": 1000', '"limit": 200, "limit_test": 50')):
        assert code.count(long) == 1
        code = code.replace(long, short)
    names: dict[str, object] = {}
    exec(compile(code, "usage.md", "exec"), names)
    record = names["result"].record  # type: ignore[attr-defined]
    assert record.metrics.n_poison == 20
    assert record.config["defence"]["alpha"] == 0.05


def test_what_is_shown_of_values_is_short(blobs) -> None:  # type: ignore[no-untyped-def]
    data, none = blobs(60, 3), torch.zeros(60, dtype=torch.bool)
    isolation = Isolation(torch.zeros(60), none, "undecided")
    history = History("train", np.zeros((2, 60), np.float32), np.zeros(2), np.ones(2), stopped="it broke")
    metrics = Metrics(ca=0.90214, n_test=10, asr=0.0)
    assert repr(metrics) == "Metrics(ca=0.9021, asr=0, n_test=10)"
    assert repr(history) == "History('train', 2 epochs of 60 images, 2.0 s, stopped: it broke)"
    assert repr(Outcome(nn.Linear(1, 1), isolation, (history,))) == (
        "Outcome(Linear, Isolation('undecided', 0 of 60 images flagged), trainings: 1)"
    )
    poison = none.clone()
    poison[:5] = True
    assert repr(PoisonedSet(data, poison, none, data.labels, 1)).endswith("3 classes), 5 poison, target 1)")
    record = RunRecord({}, {}, {}, {}, {"train": 2.0}, metrics, "undecided")
    assert repr(record) == f"RunRecord('undecided', {metrics!r}, 2.0 s)"
