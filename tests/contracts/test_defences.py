"""What holds for every defence of the table; a new entry is tested by existing."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing

import numpy as np
import pytest
import torch

from antibackdoor.attacks import BadNets, poison
from antibackdoor.deciding import spared
from antibackdoor.defences import DEFENCES, Defence, RatedDefence, TrustedDefence
from antibackdoor.defences.witnesses import observe
from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Trainer, TrainPlan
from antibackdoor.types import ImageSet, Outcome, Verdict

every_defence = pytest.mark.parametrize("name", list(DEFENCES))
SCANNING = [name for name in DEFENCES if DEFENCES.get(name).can_scan]
every_scan = pytest.mark.parametrize("name", SCANNING)
every_verb = pytest.mark.parametrize(
    ("name", "verb"), [*((name, "run") for name in DEFENCES), *((name, "scan") for name in SCANNING)]
)
VERDICTS = set(typing.get_args(Verdict))
PLAN = TrainPlan(epochs=4, batch_size=32, lr=0.05, schedule="onecycle", augment=("flip",))
# Stages that would be longer than the test needs.
SHORTER = {"isolation_epochs": 3, "unlearn_epochs": 1, "biased_epochs": 2, "scan_epochs": 2, "rounds": 2}
SHORTER |= {"tune_updates": 2, "updates": 2, "curve_updates": 2}
# Of published ABL, whose lengths are not the plan's; its updates are a word.
SHORTER |= {"tune_epochs": 2, "epochs": 5, "turning_epoch": 3}


# The encoder is not what is tested, and takes seconds to load.
SHORTER |= {"witness": "none"}


def build(name: str, **params: object) -> Defence:
    known = {field.name for field in dataclasses.fields(DEFENCES.get(name))}
    known -= {"updates"} if name.startswith("abl-") else set()
    return DEFENCES.build(name, {key: value for key, value in {**SHORTER, **params}.items() if key in known})


@pytest.fixture(scope="module", autouse=True)
def _short_detector():
    """A detector's shape and bits are what it has to be after few epochs too; there is no option for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observe, "EPOCHS", 3)
        yield


@pytest.fixture(scope="module")
def trusted(blobs):
    return blobs(24, 4, channels=1, height=16, width=16, seed=5)


@pytest.fixture(scope="module")
def poisoned(blobs):
    data = blobs(120, 4, channels=1, height=16, width=16)
    return poison(data, BadNets(target=1), rate=0.1, generator=torch.Generator().manual_seed(0))


class Noting(Trainer):
    def __init__(self, *args, **rest):
        super().__init__(*args, **rest)
        self.phases = []

    def fit(self, model, data, phase, **rest):
        assert isinstance(phase, Phase)
        self.phases.append(phase.name)
        return super().fit(model, data, phase, **rest)


@pytest.fixture(scope="module")
def defend(runtime, tiny, trusted):
    def call(defence, data, verb="run", held_out=None, seed=0):
        # What a defence needs beside the observed data is handed over, as a run does.
        if isinstance(defence, TrustedDefence):
            defence = defence.with_trusted(trusted)
        if isinstance(defence, RatedDefence):
            defence = defence.with_rate(0.1)
        seeds = Seeds(seed)
        trainer = Noting(runtime, seeds, held_out=held_out)
        outcome = getattr(defence, verb)(data, build_model=tiny(data), fit=trainer, plan=PLAN, seeds=seeds)
        return outcome, trainer.phases

    return call


@dataclasses.dataclass(frozen=True)
class First:
    """What a defence came to on the poisoned set, and whether it left the set as it was."""

    outcome: Outcome
    phases: list[str]
    unchanged: bool


@pytest.fixture(scope="module")
def first(defend, poisoned):
    """Gives the outcome with seed 0, which is asked for once; not to be changed."""

    @functools.cache
    def call(name, verb="run"):
        data = poisoned.observed
        images, labels = data.images.clone(), data.labels.clone()
        outcome, phases = defend(build(name), data, verb)
        return First(outcome, phases, torch.equal(data.images, images) and torch.equal(data.labels, labels))

    return call


@every_verb
def test_an_outcome_has_the_right_shapes(name, verb, first, poisoned):
    data = poisoned.observed
    outcome, phases = first(name, verb).outcome, first(name, verb).phases
    isolation = outcome.isolation
    assert (isolation.scores.shape, isolation.scores.dtype) == ((120,), torch.float32)
    assert bool(isolation.scores.isfinite().all())
    assert (isolation.flagged.shape, isolation.flagged.dtype) == ((120,), torch.bool)
    assert isolation.verdict in VERDICTS
    assert isolation.evidence
    assert all(isinstance(sentence, str) and sentence.endswith(".") for sentence in isolation.evidence)
    assert phases
    assert len(set(phases)) == len(phases), "a checkpoint finds its phase by its name"
    assert [history.phase for history in outcome.histories] == phases
    for history in outcome.histories:
        assert history.losses.shape == (len(history.seconds), 120)
    if verb == "run":
        assert outcome.model is not None
    if outcome.model is not None:
        with torch.no_grad():
            logits = outcome.model.eval()(data.images[:5].float() / 255)
        assert logits.shape == (5, 4)
        assert bool(logits.isfinite().all())


@every_verb
def test_the_data_is_not_changed(name, verb, first):
    assert first(name, verb).unchanged


@every_defence
def test_a_defence_is_given_what_is_observed_and_nothing_else(name):
    for verb in ("run", "scan"):
        signature = inspect.signature(getattr(DEFENCES.get(name), verb))
        assert list(signature.parameters) == ["self", "data", "build_model", "fit", "plan", "seeds"]
    assert {field.name for field in dataclasses.fields(ImageSet)} == {
        "images",
        "labels",
        "classes",
        "ids",
        "name",
        "skipped",
        "white",  # how grey of 16 bits was read
        "vouched",  # a person's own word, not the truth of an experiment
    }


@every_defence
def test_names_tell_a_defence_nothing(name, first, defend, poisoned):
    renamed = dataclasses.replace(poisoned.observed, ids=tuple(f"poison/{i}" for i in range(120)), name="other")
    by_name, other = first(name).outcome, defend(build(name), renamed)[0]
    assert torch.equal(by_name.isolation.scores, other.isolation.scores)
    assert torch.equal(by_name.isolation.flagged, other.isolation.flagged)


@every_verb
def test_a_seed_decides_everything(name, verb, first, defend, poisoned):
    one = first(name, verb).outcome
    again, other = (defend(build(name), poisoned.observed, verb, seed=seed)[0] for seed in (0, 1))
    assert torch.equal(one.isolation.scores, again.isolation.scores)
    assert torch.equal(one.isolation.flagged, again.isolation.flagged)
    assert not torch.equal(one.isolation.scores, other.isolation.scores)
    for there, here in zip(one.histories, again.histories, strict=True):
        assert np.array_equal(there.losses, here.losses, equal_nan=True)
    if one.model is not None:
        weights = one.model.state_dict(), again.model.state_dict()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@every_verb
def test_held_out_images_are_scored_and_not_trained_on(name, verb, defend, poisoned, runtime, tiny):
    held_out = torch.zeros(120, dtype=torch.bool)
    held_out[::10] = True
    outcome, _ = defend(build(name), poisoned.observed, verb, held_out=held_out)
    assert bool(outcome.isolation.scores.isfinite().all())
    on_observed = [history for history in outcome.histories if not np.isnan(history.losses).all()]
    assert on_observed
    for history in on_observed:
        assert np.isfinite(history.losses[:, held_out.numpy()]).all()


@every_scan
def test_the_scan_finds_what_the_run_finds(name, first):
    by_scan, by_run = first(name, "scan").outcome, first(name, "run").outcome
    assert torch.equal(by_scan.isolation.flagged, by_run.isolation.flagged)


WITH_SHARE = [name for name in DEFENCES if "share" in {f.name for f in dataclasses.fields(DEFENCES.get(name))}]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25])
@pytest.mark.parametrize("name", WITH_SHARE)
def test_the_share_that_is_flagged(name, share, defend, poisoned):
    outcome, _ = defend(build(name, share=share), poisoned.observed, "scan")
    assert int(outcome.isolation.flagged.sum()) == -int(-share * 120 // 1)
    kept = outcome.isolation.scores[~outcome.isolation.flagged]
    assert outcome.isolation.scores[outcome.isolation.flagged].min() >= kept.max()
    assert outcome.isolation.verdict == "undecided"


def test_what_a_defence_needs_is_told_by_its_class():
    for name in DEFENCES:
        defence = DEFENCES.get(name)
        assert defence.needs_trusted == issubclass(defence, TrustedDefence), name
        assert defence.needs_rate == issubclass(defence, RatedDefence), name


@pytest.mark.parametrize("name", [name for name in DEFENCES if DEFENCES.get(name).needs_trusted])
def test_without_trusted_images_what_needs_them_does_not_run(name, poisoned, runtime, tiny):
    data, seeds = poisoned.observed, Seeds(0)
    settings = {"build_model": tiny(data), "fit": Trainer(runtime, seeds), "plan": PLAN, "seeds": seeds}
    with pytest.raises(ConfigError, match="needs trusted images"):
        build(name).run(data, **settings)
    with pytest.raises(ConfigError, match="needs trusted images" if build(name).can_scan else "cannot scan"):
        build(name).scan(data, **settings)


@pytest.mark.parametrize("name", [name for name in DEFENCES if DEFENCES.get(name).needs_rate])
@pytest.mark.parametrize("verb", ["run", "scan"])
def test_without_a_rate_a_rated_defence_does_not_run(name, verb, poisoned, runtime, tiny):
    data, seeds = poisoned.observed, Seeds(0)
    with pytest.raises(ConfigError, match="needs the rate of poison"):
        getattr(build(name), verb)(data, build_model=tiny(data), fit=Trainer(runtime, seeds), plan=PLAN, seeds=seeds)


def test_no_defence_flags_nothing(first):
    outcome, phases = first("none").outcome, first("none").phases
    assert not bool(outcome.isolation.flagged.any())
    assert outcome.isolation.verdict != "poisoned"
    assert phases == ["train"]


@pytest.mark.parametrize("name", WITH_SHARE)
def test_isolated_images_are_left_out_of_the_training_that_follows(name, defend, poisoned):
    outcome, _ = defend(build(name, share=0.1), poisoned.observed)
    by_name = {history.phase: history for history in outcome.histories}
    if "fine-tune" in by_name:
        missing = torch.from_numpy(by_name["fine-tune"].losses[0]).isnan()
        assert torch.equal(missing, outcome.isolation.flagged)


@every_defence
def test_parameters_go_round_through_the_registry(name):
    defence = DEFENCES.build(name, {})
    assert DEFENCES.build(name, parameters_of(defence)) == defence
    assert hash(defence) == hash(DEFENCES.build(name, {}))
    with pytest.raises(UnknownNameError):
        DEFENCES.build(name, {"nonsense": 1})


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("abl-modified", {"gamma": 0.0}),
        ("abl-modified", {"gamma": float("nan")}),
        ("abl-modified", {"share": 0.0}),
        ("abl-modified", {"share": 1.0}),
        ("abl-modified", {"isolation_lr": -1.0}),
        ("abl-modified", {"cap": 0.0}),
        ("abl-modified", {"isolation_epochs": 0}),
        ("abl-modified", {"unlearn_epochs": -1}),
        ("abl-modified", {"unlearn_lr": 0.0}),
        ("abl-modified", {"anchors": -1}),
        ("abl-modified", {"reduction": "mean"}),
        ("abl-modified", {"scope": "all"}),
        ("abl-code", {"gamma": float("nan")}),
        ("abl-code", {"share": 1.0}),
        ("abl-code", {"lr": 0.0}),
        ("abl-code", {"batch_size": 1}),
        ("abl-code", {"momentum": 1.0}),
        ("abl-code", {"weight_decay": -1.0}),
        ("abl-code", {"rule": "sample"}),
        ("abl-code", {"updates": "many"}),
        ("abl-code", {"isolation_epochs": 0}),
        ("abl-code", {"tune_epochs": -1}),
        ("abl-code", {"tune_lr": float("inf")}),
        ("abl-code", {"tune_milestones": (0,)}),
        ("abl-code", {"tune_augment": ("crop", "cutout-3px")}),
        ("abl-code", {"unlearn_epochs": -1}),
        ("abl-code", {"unlearn_lr": -1.0}),
        ("abl-code", {"unlearn_augment": ("blur",)}),
        ("abl-backdoorbench", {"tune_lr": 0.0}),
        ("abl-paper", {"turning_epoch": 0}),
        ("abl-paper", {"turning_epoch": 100}),
        ("abl-paper", {"milestones": (19, 70)}),
        ("abl-paper", {"augment": ("blur",)}),
        ("abl-paper", {"cap": 0.0}),
        ("abl-paper", {"gamma": float("inf")}),
        ("agpd", {"per_class": 0}),
        ("agpd", {"threshold": float("inf")}),
        ("agpd", {"dispersed": -0.1}),
        ("agpd", {"step": 1.0}),
        ("agpd", {"window": 0}),
        ("cbd", {"biased_epochs": 0}),
        ("cbd", {"scan_epochs": 0}),
        ("cbd", {"biased_lr": float("inf")}),
        ("cbd", {"certain_loss": 0.0}),
        ("cbd", {"certain_share": 0.0}),
        ("cbd", {"share": 1.0}),
        ("cleanlab", {"folds": 1}),
        ("cleanlab", {"filter_by": "best"}),
        ("d-br", {"share": 0.0}),
        ("d-br", {"clean_share": 1.0}),
        ("d-br", {"hold_out": 0.0}),
        ("d-br", {"rounds": 0}),
        ("d-br", {"unlearn_lr": float("nan")}),
        ("d-br", {"unlearn_batch_size": 1}),
        ("d-br", {"relearn_lr": 0.0}),
        ("d-br", {"learnt": 1.0}),
        ("d-br", {"scope": "all"}),
        ("fine-pruning", {"trusted_share": 0.0}),
        ("fine-pruning", {"trusted_share": 1.0}),
        ("fine-pruning", {"tolerance": -0.01}),
        ("fine-pruning", {"tolerance": 1.0}),
        ("fine-pruning", {"tune_updates": 0}),
        ("fine-pruning", {"tune_lr": float("nan")}),
        ("fine-pruning", {"batch_size": 1}),
        ("nad", {"updates": 0}),
        ("nad", {"lr": 0.0}),
        ("nad", {"power": float("inf")}),
        ("nad", {"betas": ()}),
        ("nad", {"betas": (1.0, -1.0)}),
        ("mcr", {"second": "other"}),
        ("mcr", {"curve_updates": 0}),
        ("mcr", {"curve_lr": -1.0}),
        ("mcr", {"positions": ()}),
        ("mcr", {"positions": (0.1, 1.0)}),
        ("scan", {"trusted_share": 0.0}),
        ("scan", {"threshold": 0.0}),
        ("scan", {"threshold": float("nan")}),
        ("scan", {"starts": 0}),
        ("spectral", {"rate": 1.0}),
        ("spectral", {"rate": float("nan")}),
        ("spectral", {"factor": 0.0}),
        ("spectral", {"most": 0.6}),
        ("activation-clustering", {"rate": -0.1}),
        ("activation-clustering", {"factor": float("inf")}),
        ("activation-clustering", {"largest": 0.0}),
        ("activation-clustering", {"components": 0}),
    ],
)
def test_values_outside_their_range(name, params):
    with pytest.raises(ConfigError, match=rf"^defence\.{next(iter(params))}: "):
        DEFENCES.build(name, params)


def test_an_unknown_signal_is_named_when_the_defence_is_built():
    with pytest.raises(UnknownNameError, match=r"'trajectori'\. Did you mean 'trajectory'"):
        DEFENCES.build("abl-modified", {"signal": "trajectori"})


@every_verb
def test_a_person_may_vouch_for_every_image(name, verb, poisoned, defend):
    data = poisoned.observed
    vouched = dataclasses.replace(data, vouched=torch.ones(len(data), dtype=torch.bool))
    outcome, phases = defend(build(name), vouched, verb)
    assert not bool(spared(outcome.isolation, vouched).flagged.any())
    assert not [phase for phase in phases if phase.startswith("retrain")]
