"""The cells of a grid: what each is, what decides its result, and what it shares with others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from antibackdoor import plugins
from antibackdoor.attacks import ATTACKS
from antibackdoor.config import Choice, RunConfig
from antibackdoor.defences import DEFENCES, FORMER_NAMES
from antibackdoor.errors import UnknownNameError
from antibackdoor.registry import Registry, parameters_of
from antibackdoor.types import Json

__all__ = ["NONE", "PLACES", "Cell", "filled"]

NONE = "none"
PLACES = frozenset({"source", "test", "trusted"})  # where data lie on this machine; no result depends on it
# Raise it when a cell of the same configuration would give another result, so that no record made before is used.
_VERSION = 1
_CLASSES = ("target", "source")  # hyper-parameters that may be the name of a class, known once the data are read


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        data: Name of the data set.
        attack: Name of the attack, "none" without one.
        attack_label: What tables call it.
        rate: Share of images poisoned; None without an attack.
        defence: Name of the defence.
        defence_label: What tables call it.
        model: The network as configured.
        seed: Of every random choice.
        config: Everything that the run needs.
    """

    data: str
    attack: str
    attack_label: str
    rate: float | None
    defence: str
    defence_label: str
    model: str
    seed: int
    config: RunConfig

    @property
    def names(self) -> dict[str, Json]:
        """What tells the cell from the others, as it stands in its record."""
        return {
            "data": self.data,
            "attack": self.attack,
            "attack_label": self.attack_label,
            "rate": self.rate,
            "defence": self.defence,
            "defence_label": self.defence_label,
            "model": self.model,
            "seed": self.seed,
        }

    @property
    def traits(self) -> dict[str, set[object]]:
        """The values by which a part of a grid may be chosen; attacks and defences go by name and by label."""
        return {
            "data": {self.data},
            "attack": {self.attack, self.attack_label},
            "rate": {self.rate},
            "defence": {self.defence, self.defence_label},
            "model": {self.model},
            "seed": {self.seed},
            "weak": {self.is_weak},
        }

    @property
    def is_weak(self) -> bool:
        """Whether its attack is by default settings one that was measured not to be learned from so few images."""
        poisoned, images = self.config.attack, self.config.data.limit
        if poisoned is None or images is None or images > ATTACKS.get(self.attack).weak_up_to:
            return False
        own, plain = (filled(ATTACKS, one, "attack") for one in (poisoned, Choice(name=self.attack)))
        return all(own[name] == plain[name] for name in own if name not in _CLASSES)

    @property
    def title(self) -> str:
        """One short line for people."""
        attack = self.attack_label if self.rate is None else f"{self.attack_label}@{self.rate:g}"
        return f"{self.data} {attack} {self.defence_label} {self.model} seed {self.seed}"

    @cached_property
    def settings(self) -> dict[str, Json]:
        """The configuration with every default filled in, the name of the data in place of where they lie."""
        config = self.config
        values = config.recorded()
        # Where there are no decisions they are not named, so that records of before there were any keep their keys.
        data = config.data.model_dump(mode="json", exclude={*PLACES, "decisions", "group_by"})
        if config.data.decisions is not None:
            data["decisions"] = Path(config.data.decisions).name
        # Other trusted images give other results, wherever they lie.
        data["trusted"] = None if config.data.trusted is None else Path(config.data.trusted).name
        values["data"] = {"name": self.data, **data}
        values["defence"] = {"name": config.defence.name, **filled(DEFENCES, config.defence, "defence")}
        if config.attack is not None:
            own = config.attack.model_dump(mode="json", exclude={"params"})
            values["attack"] = {**own, **filled(ATTACKS, config.attack, "attack")}
        return values

    @cached_property
    def key(self) -> str:
        """A hash of everything that decides the result; the same on every machine."""
        values = {name: value for name, value in self.settings.items() if name != "device"}
        values["defence"] = {**self.settings["defence"], "name": self._recorded(self.defence)}  # type: ignore[dict-item]
        return _hash("cell", values)

    @property
    def file(self) -> str:
        """The name of its record: what it is, for people, and its key."""
        label = self._recorded(self.defence) if self.defence_label == self.defence else self.defence_label
        words = f"{self.data}-{self.attack_label}-{self.rate or 0:g}-{label}-{self.model}-{self.seed}"
        return f"{re.sub('[^A-Za-z0-9.-]+', '_', words)[:120]}-{self.key}.json"

    @staticmethod
    def _recorded(defence: str) -> str:
        """Return the name by which records are found: the first that a defence had."""
        return FORMER_NAMES.get(defence, defence)

    @cached_property
    def control(self) -> Cell:
        """The undefended network trained on the same images before poisoning, with the same seed."""
        config = self.config.model_copy(update={"attack": None, "defence": Choice(name=NONE)})
        return Cell(self.data, NONE, NONE, None, NONE, NONE, self.model, self.seed, config)

    @property
    def is_control(self) -> bool:
        """Whether it is a control itself."""
        return self.attack == NONE and self.defence == NONE

    @cached_property
    def shared_control(self) -> str:
        """The name under which the control network is kept for all cells that are compared with it."""
        return f"control-{self.control.key}.safetensors"

    @cached_property
    def shared_poison(self) -> str | None:
        """The name under which the poisoned set is kept for all cells that train on it; None without an attack."""
        if self.attack == NONE:
            return None
        # Surrogates are networks of the victim's kind, and train in its precision.
        parts = {name: self.settings[name] for name in ("data", "attack", "model", "seed")}
        return f"poisoned-{_hash('poisoned', {**parts, 'precision': self.config.train.precision})}.safetensors"


def filled(registry: Registry[Any], choice: Choice, path: str) -> dict[str, Json]:
    """Return all hyper-parameters of a member of a family, defaults included, as plain values.

    Args:
        registry: The family.
        choice: The member; a hyper-parameter that may name a class is taken as it is.
        path: Where it stands in the configuration, for messages.

    Returns:
        The values by name; with "plugin", the versions of what it comes from, where it is not of this package.

    Raises:
        ConfigError: An unknown member or hyper-parameter, or a value that cannot be.
    """
    late = {key: value for key, value in choice.params.items() if key in _CLASSES and isinstance(value, str)}
    params = {key: value for key, value in choice.params.items() if key not in late}
    member = registry.build(choice.name, params, path=path)
    known = parameters_of(member)
    for key in late:
        if key not in known:
            raise UnknownNameError(f"setting below {path}:", key, known)
    brought = plugins.behind(member)
    values = {**known, **late, **({"plugin": brought} if brought else {})}
    plain: dict[str, Json] = json.loads(json.dumps(values, default=str))
    return plain


def _hash(kind: str, values: Mapping[str, Json]) -> str:
    text = json.dumps([_VERSION, kind, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
