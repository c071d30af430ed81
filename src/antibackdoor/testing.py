"""Checks for attacks, defences and signals of your own: what the package relies on, tried on small synthetic images.

A check returns nothing, or raises ``ConfigError`` with the first thing that does not hold. It takes seconds where a
member trains little of its own; give it hyper-parameters that make its stages short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from antibackdoor.attacks import Attack, poison, triggered_test
from antibackdoor.defences import Defence, RatedDefence, TrustedDefence
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import Evidence, Network, Signal
from antibackdoor.models import builder_from
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Runtime, Trainer, TrainPlan
from antibackdoor.types import ImageSet, Outcome

__all__ = ["check_attack", "check_defence", "check_signal"]

_MODEL, _CLASSES = "wrn-10-1", 4
_SHAPES = ((1, 28, 28), (3, 32, 40))  # C, H, W
_PLAN = TrainPlan(epochs=2, batch_size=16, lr=0.05, schedule="constant", augment=())
_RATE = 0.1

T = TypeVar("T")


def check_attack(attack: Attack) -> None:
    """Check an attack.

    Stamps keep shape, type and range, change nothing they are given, and do to an image alone what they do to it in a
    batch; every poisoned image is changed, in bytes; a seed gives the same bytes again; nothing of the global random
    state is used.

    Args:
        attack: As built; its target must be one of the first 4 classes.

    Raises:
        ConfigError: Something of this does not hold.
        PoisonError: The attack cannot be planted in 80 images of 4 classes.
    """
    name = type(attack).__name__
    _check_values(attack)
    for shape in _SHAPES:
        data = _images(80, shape)
        ready = _leaving_random_state(f"{name}.prepare", partial(_prepared, attack, data))
        _check_stamp(f"{name}.stamp", ready.stamp, ready.candidates, data)
        _check_stamp(f"{name}.stamp_test", ready.stamp_test, ready.test_candidates, data)
        rate = float(ready.candidates(data.labels).double().mean()) / 4
        first, again = (
            poison(data, each, rate=rate, generator=Seeds(0).generator("poison"))
            for each in (ready, _prepared(attack, data))
        )
        _hold(torch.equal(first.poison, again.poison), f"{name}: a seed does not choose the same images again")
        _hold(torch.equal(first.observed.images, again.observed.images), f"{name}: a seed does not give the same bytes")
        labels = first.observed.labels
        _hold(
            labels.dtype == torch.int64 and int(labels.min()) >= 0 and int(labels.max()) < _CLASSES,
            f"{name}.relabel gives labels that are no int64 in 0..{_CLASSES - 1}",
        )
        before = data.select(first.made_of)
        changed = (first.observed.images != before.images).flatten(1).any(1) | (labels != before.labels)
        _hold(bool(changed[first.poison].all()), f"{name}: some poisoned images are as they were, once they are bytes")
        clean = data.images[ready.test_candidates(data.labels)]
        changed = (triggered_test(data, ready).observed.images != clean).flatten(1).any(1)
        _hold(bool(changed.all()), f"{name}: some triggered test images are as they were, once they are bytes")


def check_defence(defence: Defence) -> None:
    """Check a defence.

    Scores, flags and logits have their shapes and are finite; phases have names of their own; the data are not changed;
    a seed decides everything, and the names of images nothing; the scan flags what the run flags; nothing of the global
    random state is used.

    Args:
        defence: As built.

    Raises:
        ConfigError: Something of this does not hold.
    """
    name = type(defence).__name__
    _check_values(defence)
    data = _images(80, (1, 12, 12))
    images, labels = data.images.clone(), data.labels.clone()
    renamed = ImageSet(data.images, data.labels, data.classes, tuple(f"other/{row}" for row in range(80)), "other")
    found = _leaving_random_state(f"{name}.run", lambda: _outcome(defence, data, "run"))
    _check_outcome(f"{name}.run", found, data)
    _hold(found.model is not None, f"{name}.run returns no network")
    _hold(
        torch.equal(data.images, images) and torch.equal(data.labels, labels),
        f"{name}.run changes the data it is given",
    )
    again = _outcome(defence, renamed, "run")
    _hold(
        torch.equal(found.isolation.scores, again.isolation.scores),
        f"{name}.run: the same seed gives other scores, or they depend on the names of the images",
    )
    if defence.can_scan:
        scanned = _leaving_random_state(f"{name}.scan", lambda: _outcome(defence, data, "scan"))
        _check_outcome(f"{name}.scan", scanned, data)
        _hold(
            torch.equal(scanned.isolation.flagged, found.isolation.flagged),
            f"{name}.scan flags other images than {name}.run",
        )


def check_signal(signal: Signal) -> None:
    """Check a signal: float32 scores, one finite number an image, the same again, and nothing that it is given changed.

    Args:
        signal: As built.

    Raises:
        ConfigError: Something of this does not hold.
    """
    name = type(signal).__name__
    _check_values(signal)
    data, seeds = _images(80, (1, 12, 12)), Seeds(0)
    build_model, _ = builder_from(_MODEL, data)
    model, trainer = build_model(seeds.generator("init")), Trainer(Runtime.create("cpu", "fp32", "off"), seeds)
    history = trainer(model, data, Phase("train", _PLAN.but(epochs=4)))
    evidence = Evidence.of(history, data.labels, data.num_classes, Network(model, data, trainer.runtime))
    losses, labels = evidence.losses.clone(), evidence.labels.clone()
    scores = _leaving_random_state(f"{name}.scores", lambda: signal.scores(evidence))
    _check_scores(f"{name}.scores", scores, data)
    _hold(
        torch.equal(evidence.losses, losses) and torch.equal(evidence.labels, labels),
        f"{name}.scores changes the evidence it is given",
    )
    _hold(torch.equal(scores, signal.scores(evidence)), f"{name}.scores gives other scores the second time")


def _hold(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ConfigError(otherwise)


def _check_values(member: Attack | Defence | Signal) -> None:
    cls: type[object] = type(member)
    _hold("__dataclass_params__" in vars(cls), f"{cls.__name__} is no dataclass; put @dataclass(frozen=True) above it")
    _hold(
        cls(**parameters_of(member)) == member,
        f"{cls.__name__} built again from its hyper-parameters is not the same; __post_init__ must not change them",
    )
    hash(member)


def _check_stamp(
    what: str, stamp: Callable[..., Tensor], candidates: Callable[[Tensor], Tensor], data: ImageSet
) -> None:
    rows = candidates(data.labels).nonzero().squeeze(1)
    given = (data.images[rows].float() / 255, rows, data.labels[rows])
    copies = [value.clone() for value in given]
    stamped = _leaving_random_state(what, partial(stamp, *given))
    _hold(all(map(torch.equal, given, copies)), f"{what} changes what it is given; return a new tensor")
    _hold(
        stamped.shape == given[0].shape and stamped.dtype == torch.float32,
        f"{what} returns {stamped.dtype} {tuple(stamped.shape)} for float32 {tuple(given[0].shape)}",
    )
    low, high = float(stamped.min()), float(stamped.max())
    _hold(low >= -1e-6 and high <= 1 + 1e-6, f"{what} gives pixels in {low:g}..{high:g}, not in 0..1")
    alone = stamp(*(value[3:4] for value in given))
    _hold(
        torch.allclose(alone[0], stamped[3], atol=1e-5),
        f"{what} does something else to an image alone than in a batch; what differs must follow from its index",
    )


def _leaving_random_state(what: str, call: Callable[[], T]) -> T:
    before = torch.random.get_rng_state()
    result = call()
    _hold(
        torch.equal(before, torch.random.get_rng_state()),
        f"{what} draws from the global random state; draw from seeds.generator(NAME)",
    )
    return result


def _images(count: int, shape: tuple[int, int, int]) -> ImageSet:
    """Grey noise on which a bright bar tells the class."""
    _, height, _ = shape
    labels = torch.arange(count) % _CLASSES
    pixels = torch.randint(20, 90, (count, *shape), generator=Seeds(0).generator("check"))
    for label in range(_CLASSES):
        top = label * height // _CLASSES
        pixels[labels == label, :, top : top + height // _CLASSES] += 120
    names = tuple(f"image/{row:03d}" for row in range(count))
    return ImageSet(
        pixels.to(torch.uint8), labels, tuple(f"class {label}" for label in range(_CLASSES)), names, "check"
    )


def _prepared(attack: Attack, data: ImageSet) -> Attack:
    build_model, _ = builder_from(_MODEL, data)
    trainer = Trainer(Runtime.create("cpu", "fp32", "off"), Seeds(0))
    return attack.prepare(data, build_model=build_model, fit=trainer, seeds=Seeds(0))


def _outcome(defence: Defence, data: ImageSet, verb: str) -> Outcome:
    if isinstance(defence, TrustedDefence):
        defence = defence.with_trusted(_images(24, data.shape))
    if isinstance(defence, RatedDefence):
        defence = defence.with_rate(_RATE)
    build_model, _ = builder_from(_MODEL, data)
    trainer = Trainer(Runtime.create("cpu", "fp32", "off"), Seeds(0))
    method = defence.run if verb == "run" else defence.scan
    return method(data, build_model=build_model, fit=trainer, plan=_PLAN, seeds=Seeds(0))


def _check_outcome(what: str, outcome: Outcome, data: ImageSet) -> None:
    isolation, phases = outcome.isolation, [history.phase for history in outcome.histories]
    _check_scores(what, isolation.scores, data)
    flagged = isolation.flagged
    _hold(
        flagged.dtype == torch.bool and flagged.shape == (len(data),),
        f"{what}: flagged must be bool ({len(data)},), got {flagged.dtype} {tuple(flagged.shape)}",
    )
    _hold(bool(phases), f"{what} returns no histories; return one a phase")
    _hold(len(set(phases)) == len(phases), f"{what}: phases share a name ({', '.join(phases)}), so none can be resumed")
    if outcome.model is not None:
        with torch.no_grad():
            logits = outcome.model.eval()(data.images[:5].float() / 255)
        _hold(
            logits.shape == (5, data.num_classes) and bool(logits.isfinite().all()),
            f"{what}: the network gives {tuple(logits.shape)} for 5 images, not finite logits (5, {data.num_classes})",
        )


def _check_scores(what: str, scores: Tensor, data: ImageSet) -> None:
    _hold(
        scores.dtype == torch.float32 and scores.shape == (len(data),),
        f"{what}: scores must be float32 ({len(data)},), got {scores.dtype} {tuple(scores.shape)}",
    )
    finite = int(scores.isfinite().sum())
    _hold(finite == len(data), f"{what}: {len(data) - finite} of {len(data)} scores are not finite")
