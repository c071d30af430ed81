"""The configuration of a grid, and the product that it stands for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from antibackdoor.attacks import ATTACKS
from antibackdoor.benchmark.cells import NONE, PLACES, Cell, filled
from antibackdoor.benchmark.grid_members import GridAttack, GridData, GridDefence, Skip, as_tuple
from antibackdoor.config import OWN_TRAIN, Choice, PoisonConfig, RunConfig, TrainConfig, apply_settings, read_yaml
from antibackdoor.defences import DEFENCES
from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.extras import need
from antibackdoor.models import MODELS
from antibackdoor.types import Json

__all__ = ["GridConfig"]

_OPEN_SOURCES = ("embedded", "hub:")
_HUB, _TIMM = "hub:", "timm:"
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class GridConfig(BaseModel):
    """A product of data sets, attacks, rates, defences, networks and seeds, always with no attack and no defence.

    Attributes:
        data: The data sets.
        attacks: The attacks; "none" joins them, once for all rates.
        defences: The defences; "none" joins them.
        rates: Poisoning rates of the attacks that have none of their own, above 0 and at most 1; one or several.
        models: Networks of the data sets that have none of their own; one or several.
        seeds: Seeds; one or several.
        train: As in ``RunConfig``.
        device: As in ``RunConfig``; whether it is there is seen where a cell runs.
        skip: What to leave out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: tuple[GridData, ...]
    attacks: tuple[GridAttack, ...]
    defences: tuple[GridDefence, ...]
    rates: tuple[Annotated[float, Field(strict=True)], ...] = (0.1,)
    models: tuple[str, ...] = ("auto",)
    seeds: tuple[Annotated[int, Field(strict=True)], ...] = (0,)
    train: TrainConfig = TrainConfig()
    device: str = "auto"
    skip: tuple[Skip, ...] = ()

    _one_or_several = field_validator("rates", "models", "seeds", mode="before")(as_tuple)

    @staticmethod
    def parse(values: Mapping[str, object]) -> GridConfig:
        """Validate plain values, names of attacks, defences and networks and all hyper-parameters included.

        Raises:
            ConfigError: A value of the wrong type or outside its range, something that stands twice, or a list without
                entries; the message starts with its path.
            UnknownNameError: A key or a name that does not exist; the message names the nearest that does.
        """
        try:
            grid = GridConfig.model_validate(values)
        except ValidationError as error:
            raise _explained(error) from None
        grid._check()
        return grid

    @staticmethod
    def load(path: Path, settings: Iterable[str] = ()) -> GridConfig:
        """Read a YAML file.

        Args:
            path: The file.
            settings: Each "path=value", laid over it; see ``config.apply_settings``.

        Raises:
            ConfigError: The file is missing, no YAML, or not a valid configuration.
        """
        return GridConfig.parse(apply_settings(read_yaml(path), settings))

    def with_sources(self, sources: Mapping[str, str]) -> GridConfig:
        """Return the grid with the places of its data sets filled in.

        Args:
            sources: Place by name of the data set, over what the configuration says.

        Raises:
            ConfigError: A data set that ``skip`` does not leave out still has no source, or a place that is not there;
                or a package that it or a network needs is not installed.
            UnknownNameError: No data set has that name.
        """
        names = [data.name for data in self.data]
        for name in sources:
            if name not in names:
                raise UnknownNameError("data set", name, names)
        placed = tuple(data.model_copy(update={"source": sources.get(data.name, data.source)}) for data in self.data)
        cells = self.cells()
        used = {cell.data for cell in cells}
        for data in placed:
            if data.name in used:
                _check_places(data)
        for model in sorted({cell.model for cell in cells}):
            if model.startswith(_TIMM):
                need("timm", "models", f"models: {model}")
        return self.model_copy(update={"data": placed})

    def dump(self) -> dict[str, Json]:
        """Return plain values, without the places of data on this machine."""
        values: dict[str, Json] = self.model_dump(mode="json", exclude={"attacks", "defences", "data"})
        values["data"] = [
            {
                key: value
                for key, value in data.model_dump(mode="json").items()
                if key not in PLACES or str(value).startswith((*_OPEN_SOURCES, OWN_TRAIN))
            }
            for data in self.data
        ]
        values["attacks"] = [attack.flat() for attack in self.attacks]
        values["defences"] = [defence.flat() for defence in self.defences]
        return values

    def cells(self) -> list[Cell]:
        """Return every cell, those without an attack and without a defence first.

        Raises:
            ConfigError: ``skip`` leaves nothing, or matches nothing.
        """
        every = list(self._product())
        for number, rule in enumerate(self.skip):
            _check_rule(f"skip.{number}", rule, every)
        kept = [cell for cell in every if not any(rule.matches(cell) for rule in self.skip)]
        if not kept:
            raise ConfigError("skip: it leaves no cell of the grid")
        return kept

    def _product(self) -> Iterator[Cell]:
        attacks = _with_none(self.attacks, GridAttack(name=NONE))
        defences = _with_none(self.defences, GridDefence(name=NONE))
        for data, seed in itertools.product(self.data, self.seeds):
            train = self._train_of(data)
            for model, attack, defence in itertools.product(self._models_of(data), attacks, defences):
                for rate in self._rates_of(attack):
                    config = RunConfig(
                        data=data.plain(),
                        model=model,
                        attack=None if rate is None else _poison(attack, rate, data.target),
                        defence=Choice(name=defence.name, params=defence.params),
                        train=train,
                        seed=seed,
                        device=self.device,
                    )
                    names = (attack.name, attack.label or attack.name, rate, defence.name)
                    yield Cell(data.name, *names, defence.label or defence.name, model, seed, config)

    def _rates_of(self, attack: GridAttack) -> tuple[float | None, ...]:
        return (None,) if attack.name == NONE else attack.rate or self.rates

    def _models_of(self, data: GridData) -> tuple[str, ...]:
        return self.models if data.model is None else (data.model,)

    def _train_of(self, data: GridData) -> TrainConfig:
        try:
            return RunConfig.parse({"train": {**self.train.model_dump(), **data.train}}).train
        except UnknownNameError:
            known = TrainConfig.model_fields
            strange = next(key for key in data.train if key not in known)
            raise UnknownNameError(f"setting below data.{data.name}.train:", strange, known) from None
        except ConfigError as error:
            raise ConfigError(f"data.{data.name}.{error}") from None

    def _check(self) -> None:
        labels = {
            "data": [data.name for data in self.data],
            "attacks": [attack.label or attack.name for attack in self.attacks],
            "defences": [defence.label or defence.name for defence in self.defences],
            "rates": self.rates,
            "models": self.models,
            "seeds": self.seeds,
        }
        for path, values in labels.items():
            _check_list(path, values)
        for number, attack in enumerate(self.attacks):
            _check_list(f"attacks.{number}.rate", (0.1,) if attack.rate is None else attack.rate)
        for rate in (*self.rates, *(rate for attack in self.attacks for rate in attack.rate or ())):
            if not 0 < rate <= 1:
                raise ConfigError(f"rates: each must be above 0 and at most 1, got {rate:g}; no attack is always there")
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"device: {self.device!r} is no device name; use auto, cpu, cuda, cuda:1 or mps")
        for attack in self.attacks:
            _check_label("attacks", attack.name, attack.label)
            if attack.name == NONE and attack != GridAttack(name=NONE):
                raise ConfigError(f"attacks.{NONE}: it has no settings; without an attack there is nothing to set")
            if attack.name != NONE:
                filled(ATTACKS, attack, f"attacks.{attack.label or attack.name}")
        for defence in self.defences:
            _check_label("defences", defence.name, defence.label)
            if defence.name == NONE and defence != GridDefence(name=NONE):
                raise ConfigError(f"defences.{NONE}: it has no settings; without a defence there is nothing to set")
            filled(DEFENCES, defence, f"defences.{defence.label or defence.name}")
        for data in self.data:
            self._train_of(data)
            for model in self._models_of(data):
                if model not in {"auto", *MODELS} and not model.startswith(_TIMM):
                    raise UnknownNameError("model", model, ["auto", *MODELS, "timm:NAME"])


def _with_none(members: Sequence[Any], none: Choice) -> list[Any]:
    return [none, *(member for member in members if member.name != NONE)]


def _poison(attack: GridAttack, rate: float, target: int | str | None) -> PoisonConfig:
    params = attack.params if target is None else {"target": target, **attack.params}
    return PoisonConfig(name=attack.name, params=params, rate=rate, rate_of=attack.rate_of, seed=attack.seed)


def _check_list(path: str, values: Sequence[object]) -> None:
    if not values:
        raise ConfigError(f"{path}: empty, so the grid has no cells; give at least one")
    for value in values:
        if values.count(value) > 1:
            more = "; give each a label of its own" if path in {"attacks", "defences"} else ""
            raise ConfigError(f"{path}: {value!r} stands there more than once{more}")


def _check_label(path: str, name: str, label: str | None) -> None:
    if label == NONE and name != NONE:
        raise ConfigError(f"{path}.{name}.label: {NONE!r} is what tables call the cells without; give another label")


def _check_places(data: GridData) -> None:
    if not data.source:
        raise ConfigError(f"data.{data.name}.source: missing; give --data {data.name}=DIR")
    for place in (data.source, data.test):
        if place and place.startswith(_HUB):
            need("datasets", "hub", f"data.{data.name}: {place}")
        elif place and not place.startswith(_OPEN_SOURCES) and not Path(place).exists():
            raise ConfigError(f"data.{data.name}: {place} is not there")
    trusted = data.trusted
    if trusted is not None and trusted != OWN_TRAIN and not Path(trusted).exists():
        raise ConfigError(f"data.{data.name}.trusted: {trusted} is not there")


def _check_rule(path: str, rule: Skip, cells: Sequence[Cell]) -> None:
    for name in (name for name in Skip.model_fields if name != "weak"):  # may hold for none of a grid's cells
        known = {value for cell in cells for value in cell.traits[name]}
        for value in getattr(rule, name) or ():
            if value not in known:
                raise UnknownNameError(f"value of {path}.{name}:", str(value), map(str, known))
    if rule.weak is None and not any(rule.matches(cell) for cell in cells):
        raise ConfigError(f"{path}: no cell matches all of it")


def _explained(error: ValidationError) -> ConfigError:
    """Return the first fault of a configuration as one line that starts with its path."""
    first = error.errors()[0]
    *parents, key = (str(part) for part in first["loc"])
    path = ".".join([*parents, key])
    if first["type"] == "extra_forbidden":
        known = _section_at(parents).model_fields
        return UnknownNameError("setting", path, [".".join([*parents, name]) for name in known])
    if first["type"] == "missing":
        return ConfigError(f"{path}: missing")
    return ConfigError(f"{path}: {first['msg']}, got {first['input']!r}")


def _section_at(parents: Iterable[str]) -> type[BaseModel]:
    section: type[BaseModel] = GridConfig
    for parent in parents:
        annotation = None if parent.isdecimal() else section.model_fields[parent].annotation
        for option in get_args(annotation) or (annotation,):  # "tuple[GridData, ...]" has its members as options
            if isinstance(option, type) and issubclass(option, BaseModel):
                section = option
    return section
