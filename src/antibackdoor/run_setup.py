"""A run up to its first training: what it was told, and what it has when all is loaded, poisoned and held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from antibackdoor import plugins, recording
from antibackdoor.attacks import Attack
from antibackdoor.config import RunConfig
from antibackdoor.data.grouping import groups_of
from antibackdoor.data.sources import Loaded
from antibackdoor.deciding import Decided, decide
from antibackdoor.defences import Defence
from antibackdoor.defences.against import Against
from antibackdoor.defences.requirements import Resolved, resolve_requirements
from antibackdoor.models import BuildModel, ModelSpec
from antibackdoor.preparing import Planted, anew, hold_out, limited, load_data, network_of, plan_of, plant
from antibackdoor.progress import Progress
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, TrainPlan
from antibackdoor.types import ImageSet, PoisonedSet

__all__ = ["Call", "Prepared", "prepare"]


@dataclass(frozen=True)
class Call:
    """What :func:`antibackdoor.pipeline.run` was told, as described there."""

    config: RunConfig
    out: Path | None
    scan_only: bool
    resume: bool
    overwrite: bool
    progress: Progress
    track: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run just before its first training.

    Attributes:
        runtime: Where it computes.
        seeds: Its streams.
        build_model: Builds the network.
        spec: Of the network.
        plan: Of its ordinary training.
        planted: The attack of an experiment, or None.
        observed: What may be trained on, N images.
        test: The test set, or None.
        truth: What was planted into ``observed``, or None.
        decided: What a person had decided, or None.
        held_out: bool (N,), images that no training may see, or None.
        resolved: The defence with what it needs.
        groups: By id, whose an image is, or None where flags are not counted by that.
    """

    runtime: Runtime
    seeds: Seeds
    build_model: BuildModel
    spec: ModelSpec
    plan: TrainPlan
    planted: Planted | None
    observed: ImageSet
    test: ImageSet | None
    truth: PoisonedSet | None
    decided: Decided | None
    held_out: Tensor | None
    resolved: Resolved
    groups: dict[str, str] | None

    @property
    def attack(self) -> Attack | None:
        """The attack, ready for the data, or None."""
        return self.planted.attack if self.planted else None

    @property
    def foreign(self) -> dict[str, str]:
        """The plugins that the methods are from, and the digest of each."""
        return plugins.behind(self.resolved.defence, self.attack)


def prepare(
    call: Call,
    defence: Defence,
    clock: recording.Clock,
    data: Loaded | None,
    planted: Planted | None,
    model: str | nn.Module | Callable[[], nn.Module] | None,
) -> Prepared:
    """Load, poison, leave out what a person dropped, hold images out, and give the defence what it needs.

    Args:
        call: What was asked for.
        defence: With its hyper-parameters.
        clock: Counts the seconds of loading and of poisoning.
        data: Images already loaded, or None.
        planted: What :func:`antibackdoor.preparing.plant` made of them, or None.
        model: A network or a factory in place of the configuration's, or None.

    Raises:
        AntiBackdoorError: What was given cannot work; see ``errors``.
    """
    config, progress = call.config, call.progress
    runtime = Runtime.create(config.device, config.train.precision, config.train.compile)
    progress.say(f"device: {runtime.device}, {runtime.reason}")
    seeds, plan = Seeds(config.seed), plan_of(config)
    with clock.phase("load"):
        loaded = limited(data or load_data(config.data, progress), config.data, seeds)
        groups = groups_of(config.data.source, config.data.group_by, progress) if config.data.group_by else None
    build_model, spec = network_of(config, loaded.train, model)
    # What attacks train begins anew, since they bring plans of their own.
    drawn_anew = build_model if config.weights is None else network_of(anew(config), loaded.train)[0]
    with clock.phase("poison"):
        planted = planted or plant(config.attack, loaded, drawn_anew, runtime, seeds, progress)
    truth = planted.train if planted else None
    observed, clean, decided = truth.observed if truth else loaded.train, loaded.train, None
    if config.data.decisions is not None:
        decided = decide(observed, Path(config.data.decisions))
        progress.say(decided.sentence())
        # Images that an attack added stand behind the clean ones, and are none of them.
        observed, clean = decided.data, clean.select(decided.rows[decided.rows < len(clean)])
        truth = decided.poisoned(truth) if truth else None
    # A scan needs no accuracy, so it looks at every image in the same way.
    held_out = hold_out(observed, 0 if call.scan_only or loaded.test is not None else config.data.holdout, seeds)
    defence = _told(defence, observed, groups, config.data.group_by)
    given = resolve_requirements(defence, config, clean, truth=truth, held_out=held_out, seeds=seeds, progress=progress)
    return Prepared(
        runtime=runtime,
        seeds=seeds,
        build_model=build_model,
        spec=spec,
        plan=plan,
        planted=planted,
        observed=observed,
        test=loaded.test,
        truth=truth,
        decided=decided,
        held_out=held_out,
        resolved=given,
        groups=groups,
    )


def _told(defence: Defence, observed: ImageSet, groups: Mapping[str, str] | None, column: str | None) -> Defence:
    """Return a comparison with whose the images are, if it can be made; any other defence as it is."""
    if not isinstance(defence, Against):
        return defence
    return defence.given(observed, None if groups is None else [groups.get(name, "") for name in observed.ids], column)
