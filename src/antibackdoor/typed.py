"""What is given as objects in Python (a defence, an attack, a plan), said in the words of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from antibackdoor.attacks import ATTACKS, Attack
from antibackdoor.config import PoisonConfig
from antibackdoor.defences import DEFENCES, Defence
from antibackdoor.errors import ConfigError
from antibackdoor.registry import Registry, parameters_of
from antibackdoor.training import TrainPlan

__all__ = ["sections_of"]

T = TypeVar("T")


def sections_of(
    settings: Mapping[str, object] | None,
    *,
    defence: str | Defence,
    attack: str | Attack | None,
    plan: TrainPlan | None,
    decisions: str | Path | None,
    seed: int,
    device: str,
) -> dict[str, object]:
    """Return the sections of a configuration; for the arguments see :func:`antibackdoor.train`.

    Raises:
        ConfigError: Two of the arguments say the same thing, or one cannot be said in a configuration.
    """
    sections: dict[str, object] = {"seed": seed, "device": device, **(settings or {})}
    if isinstance(defence, str):
        sections["defence"] = {"name": defence, **_section(sections, "defence")}
    else:
        _lay(sections, "defence", _member(defence, DEFENCES), "defence")
    if isinstance(attack, str):
        _lay(sections, "attack", {"name": attack}, "attack")
    elif attack is not None:
        _lay(sections, "attack", _planted(attack), "attack")
    if plan is not None:
        _lay(sections, "train", _planned(plan), "plan")
    if decisions is not None:
        sections["data"] = {**_section(sections, "data"), "decisions": str(decisions)}
    return sections


def _section(sections: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = sections.get(name) or {}
    if not isinstance(section, Mapping):
        hint = f"; its name is the argument `{name}`" if name in {"attack", "defence"} else ""
        raise ConfigError(f"settings: {name} must hold hyper-parameters by name{hint}")
    return section


def _lay(sections: dict[str, object], name: str, given: Mapping[str, object], argument: str) -> None:
    """Put what an argument says into a section, beside what ``settings`` say there."""
    section = _section(sections, name)
    if twice := sorted(section.keys() & given.keys()):
        raise ConfigError(f"settings: the argument `{argument}` says {name}.{twice[0]} too; leave one of them out")
    sections[name] = {**section, **given}


def _member(member: T, table: Registry[T]) -> dict[str, object]:
    """Return name and hyper-parameters of a method, those left out that are as by default."""
    cls, kind = type(member), table.kind
    name = next((name for name in table if table.get(name) is cls), None)
    if name is None:
        home = f"antibackdoor.{kind.upper()}S"
        raise ConfigError(
            f"{kind}: {cls.__name__} has no name here, by which a run could be repeated; {home}.add('mine', "
            f"{cls.__name__}) gives it one, or load_plugin(FILE)"
        )
    params = {key: value for key, value in parameters_of(member).items() if value != _default(cls, key)}
    if parameters_of(table.build(name, params)) != parameters_of(member):
        raise ConfigError(f"{kind}: {member!r} holds what a configuration cannot say; give it by name and settings")
    return {"name": name, **params}


def _default(cls: type, name: str) -> object:
    [field] = [field for field in dataclasses.fields(cls) if field.name == name]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _planted(attack: Attack) -> dict[str, object]:
    rate = PoisonConfig.model_fields["rate"].default if attack.rate is None else attack.rate
    return {**_member(attack, ATTACKS), "rate": rate}


def _planned(plan: TrainPlan) -> dict[str, Any]:
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    if values.pop("nesterov"):
        raise ConfigError("plan: nesterov is for stages of defences; ordinary training has plain momentum")
    return values
