"""What a run works on, as its configuration says: images, the attack on them, the part held out, the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from antibackdoor.attacks import ATTACKS, Attack, poison, triggered_test
from antibackdoor.config import DataConfig, PoisonConfig, RunConfig
from antibackdoor.data.sources import Loaded, load, subsample
from antibackdoor.errors import ConfigError
from antibackdoor.models import BuildModel, ModelSpec, builder_from
from antibackdoor.progress import SILENT, Progress
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, Trainer, TrainPlan
from antibackdoor.types import ImageSet, PoisonedSet

__all__ = [
    "Planted",
    "anew",
    "class_index",
    "hold_out",
    "limited",
    "load_data",
    "network_of",
    "plan_of",
    "plant",
    "prepare_poison",
]


@dataclass(frozen=True, eq=False)
class Planted:
    """An attack on its data: the ready attack, the poisoned training set, the triggered test set."""

    attack: Attack
    train: PoisonedSet
    triggered: PoisonedSet | None


def prepare_poison(config: RunConfig, progress: Progress = SILENT) -> Planted:
    """Load and poison as a configuration says, without training on the result.

    Raises:
        ConfigError: The configuration names no attack, or an unknown one.
        PoisonError: The data cannot carry it.
    """
    runtime = Runtime.create(config.device, config.train.precision, config.train.compile)
    seeds = Seeds(config.seed)
    loaded = limited(load_data(config.data, progress), config.data, seeds)
    build_model, _ = network_of(anew(config), loaded.train)
    planted = plant(config.attack, loaded, build_model, runtime, seeds, progress)
    if planted is None:
        raise ConfigError("attack: missing; give its name, such as attack.name=badnets")
    return planted


def load_data(config: DataConfig, progress: Progress) -> Loaded:
    """Load what the data section names."""
    return load(
        config.source,
        test=config.test,
        image_size=config.image_size,
        skip_bad=config.skip_bad,
        progress=progress,
    )


def plant(
    config: PoisonConfig | None,
    loaded: Loaded,
    build_model: BuildModel,
    runtime: Runtime,
    seeds: Seeds,
    progress: Progress = SILENT,
) -> Planted | None:
    """Poison the training set as the attack section says, and put the trigger on the test set.

    Raises:
        ConfigError: Unknown attack or hyper-parameter.
        PoisonError: The data cannot carry the attack.
    """
    if config is None:
        return None
    params = dict(config.params)
    for name in ("target", "source"):
        if params.get(name) is not None:
            params[name] = class_index(loaded.train.classes, params[name], f"attack.{name}")
    streams = Seeds(seeds.seed if config.seed is None else config.seed)
    trainer = Trainer(runtime, streams.child("surrogate"), progress=progress)
    attack = ATTACKS.build(config.name, params).prepare(
        loaded.train, build_model=build_model, fit=trainer, seeds=streams.child("attack")
    )
    poisoned = poison(
        loaded.train,
        attack,
        rate=config.rate,
        rate_of=config.rate_of,
        generator=streams.generator("poison"),
    )
    triggered = triggered_test(loaded.test, attack) if loaded.test is not None else None
    return Planted(attack, poisoned, triggered)


def class_index(classes: tuple[str, ...], given: object, setting: str) -> int:
    """Return the index of a class given by name, or by its index in sorted order.

    Raises:
        ConfigError: No class has that name or index.
    """
    text = str(given)
    if text in classes:
        return classes.index(text)
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    raise ConfigError(f"{setting}: {text!r} is not a class; known: {shown}, or 0..{len(classes) - 1}")


def network_of(
    config: RunConfig, data: ImageSet, model: str | nn.Module | Callable[[], nn.Module] | None = None
) -> tuple[BuildModel, ModelSpec]:
    """Return the builder of the network that a configuration asks for, and its spec; see ``models.builder_from``.

    Args:
        config: Of the run.
        data: The images to train on, or a sample of them.
        model: A network or a factory in place of ``config.model``.
    """
    return builder_from(model or config.model, data, weights=config.weights, input_size=config.input_size)


def anew(config: RunConfig) -> RunConfig:
    """Return the configuration with a network that begins with drawn weights."""
    return config.model_copy(update={"weights": None})


def plan_of(config: RunConfig) -> TrainPlan:
    """Return the plan of ordinary training that a configuration asks for."""
    return TrainPlan(**config.train.resolved(tunes=config.weights is not None))


def limited(loaded: Loaded, config: DataConfig, seeds: Seeds) -> Loaded:
    """Draw as many images as the data section asks for, evenly over the classes."""
    train, test = loaded.train, loaded.test
    if config.limit is not None and config.limit < len(train):
        train = subsample(train, config.limit, seeds.generator("limit train"))
    if test is not None and config.limit_test is not None and config.limit_test < len(test):
        test = subsample(test, config.limit_test, seeds.generator("limit test"))
    return Loaded(train, test)


def hold_out(data: ImageSet, share: float, seeds: Seeds) -> Tensor | None:
    """Draw the part that no training may see, evenly over the classes.

    Args:
        data: N images.
        share: Of them, from 0 to 1.
        seeds: The run's; the stream "split" draws.

    Returns:
        bool (N,), or None where the share is 0 or the set is too small for it.
    """
    count = max(data.num_classes, round(share * len(data)))
    if share == 0 or count > len(data) - data.num_classes:
        return None
    generator = seeds.generator("split")
    mask = torch.zeros(len(data), dtype=torch.bool)
    for label in range(data.num_classes):
        rows = (data.labels == label).nonzero().squeeze(1)
        take = min(len(rows) - 1, max(1, round(share * len(rows))))
        mask[rows[torch.randperm(len(rows), generator=generator)[:take]]] = True
    return mask
