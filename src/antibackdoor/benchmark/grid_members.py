"""The sections of a grid: a data set, an attack, a defence, and what to leave out."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from antibackdoor.attacks import RateOf
from antibackdoor.benchmark.cells import Cell
from antibackdoor.config import OWN_TRAIN, Choice, DataConfig

__all__ = ["GridAttack", "GridData", "GridDefence", "Skip", "as_tuple"]


def as_tuple(value: object) -> object:
    """Return a value that stands alone as the only one of several."""
    return value if value is None or isinstance(value, list | tuple) else (value,)


class GridData(DataConfig):
    """One data set of a grid; a bare word is both its name and its source.

    Attributes:
        name: What tables call it; part of the key of every cell, where its place on disk is not.
        source: As in ``DataConfig``; left out in a configuration, it is given by ``--data NAME=SOURCE``.
        train: Settings of ``train`` that differ for this set.
        model: The one network for this set, in place of the grid's.
        target: The target of every attack that has none of its own: a class name or its index.
    """

    name: str = Field(min_length=1)
    source: str = ""
    train: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    target: int | str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: object) -> object:
        return {"name": value, "source": value} if isinstance(value, str) else value

    def plain(self) -> DataConfig:
        """Return the data section of a run.

        The images of a grid are known to be clean before an attack, so where none is planted, as in a control, trusted
        images are taken from them too.
        """
        own = {key: getattr(self, key) for key in DataConfig.model_fields}
        return DataConfig(**{**own, "trusted": self.trusted or OWN_TRAIN})


class GridAttack(Choice):
    """One attack of a grid; hyper-parameters stand beside the name.

    Attributes:
        label: What tables call it; its name if None.
        rate: One share of images to poison, or several; the grid's if None.
        rate_of: As in ``PoisonConfig``.
        seed: As in ``PoisonConfig``.
    """

    label: str | None = None
    rate: tuple[float, ...] | None = None
    rate_of: RateOf = "dataset"
    seed: int | None = None

    _one_or_several = field_validator("rate", mode="before")(as_tuple)


class GridDefence(Choice):
    """One defence of a grid; hyper-parameters stand beside the name.

    Attributes:
        label: What tables call it; its name if None.
    """

    label: str | None = None


class Skip(BaseModel):
    """A part of the grid to leave out: the cells that match everything given, each one value or several.

    Attributes:
        data: Names of data sets.
        attack: Names or labels of attacks.
        rate: Poisoning rates.
        defence: Names or labels of defences.
        model: Networks.
        seed: Seeds.
        weak: True: attacks, as they are by default, that an undefended network was measured not to learn from as few
            images as ``limit`` of the data set says; docs/attacks has the measurements.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: tuple[str, ...] | None = None
    attack: tuple[str, ...] | None = None
    rate: tuple[float, ...] | None = None
    defence: tuple[str, ...] | None = None
    model: tuple[str, ...] | None = None
    seed: tuple[int, ...] | None = None
    weak: tuple[bool, ...] | None = None

    _one_or_several = field_validator("*", mode="before")(as_tuple)

    def matches(self, cell: Cell) -> bool:
        """Say whether a cell is to be left out."""
        values = cell.traits
        given = {name: getattr(self, name) for name in values}
        return all(wanted is None or values[name] & set(wanted) for name, wanted in given.items())
