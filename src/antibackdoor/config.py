"""The configuration of one run: validated, from YAML and to YAML."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.types import Json

__all__ = [
    "DEFAULT_DEFENCE",
    "OWN_TRAIN",
    "Choice",
    "DataConfig",
    "PoisonConfig",
    "RunConfig",
    "TrainConfig",
    "apply_settings",
    "read_yaml",
    "set_path",
]

# What runs where no defence is named.
DEFAULT_DEFENCE = "witnesses"
# As ``data.trusted``: the training images themselves, before any attack, are known to be clean.
OWN_TRAIN = "own:train"
# Settings that records have only where they are given: there are records from before there were any.
_LATER = ("weights", "input_size")
# What PyYAML raises of a text, apart from its own errors: dates that are none, numbers of thousands of digits, depths.
_NO_YAML = (yaml.YAMLError, ValueError, TypeError, LookupError, OverflowError, RecursionError)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        # Pydantic would count true as 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("no_bool", "Input should not be true or false")
        return value


class Choice(_Section):
    """A member of a family: its name, and the hyper-parameters that differ from its defaults.

    In YAML the hyper-parameters stand beside the name: ``defence: {name: abl-code, gamma: 0.5}``.
    """

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: object) -> object:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "params" not in value:
            own = {key: item for key, item in value.items() if key in cls.model_fields}
            return {**own, "params": {key: item for key, item in value.items() if key not in own}}
        return value

    def flat(self) -> dict[str, Json]:
        """Return the section as it stands in YAML."""
        own: dict[str, Json] = self.model_dump(mode="json", exclude={"params"})
        return {**own, **self.params}


class PoisonConfig(Choice):
    """An attack to plant, in experiments: its name and hyper-parameters, and how much.

    Attributes:
        rate: Share of images to poison, 0..1.
        rate_of: "dataset" or "class"; see ``attacks.poison``.
        seed: Decides which images are poisoned; the run's seed if None.
    """

    rate: float = 0.1
    rate_of: Literal["class", "dataset"] = "dataset"
    seed: int | None = None


class DataConfig(_Section):
    """What to train on.

    Attributes:
        source: Folder, table of paths and labels (.csv, .parquet), parquet or tar files with images, .npz, "embedded"
            or "hub:NAME"; see docs/data.md.
        test: The same, of clean test images, beside what the source holds.
        image_size: Side to resize to; chosen by inspection if None.
        limit: Train on this many images, drawn evenly over the classes; all if None.
        limit_test: The same for the test set.
        holdout: Share held out for accuracy where there is no test set.
        skip_bad: Leave unreadable images out instead of stopping.
        trusted: Folder or .npz of images that are known to be clean, for the defences that need some. None where there
            are none; an experiment with an attack then takes copies of training images from before the attack.
            "own:train" takes such copies too where there is no attack, as in a control: the training images themselves
            are known to be clean.
        decisions: File of what a person decided about the images; see docs/decisions.md.
        group_by: Column of a table, such as who contributed an image, by which flags are counted; decides nothing.
    """

    source: str = "embedded"
    test: str | None = None
    image_size: int | None = None
    limit: int | None = Field(default=None, ge=2)
    limit_test: int | None = Field(default=None, ge=2)
    holdout: float = Field(default=0.1, ge=0, lt=1)
    skip_bad: bool = False
    trusted: str | None = None
    decisions: str | None = None
    group_by: str | None = None


class TrainConfig(_Section):
    """How an undefended network would be trained; see ``training.TrainPlan``.

    What is None is chosen by whether the network begins with weights that were learned elsewhere, and by the
    optimiser; see :meth:`resolved`.
    """

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=2)
    optimizer: Literal["adamw", "sgd"] | None = None
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    backbone_lr: float | None = Field(default=None, gt=0, le=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine", "multistep", "onecycle"] | None = None
    warmup: float | None = Field(default=None, ge=0, lt=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    augment: tuple[Literal["crop", "cutout", "flip"], ...] = ("crop", "flip")
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "off", "on", "graphs"] = "auto"

    def resolved(self, *, tunes: bool) -> dict[str, Any]:
        """Return the settings of a plan, chosen where they are None.

        Args:
            tunes: The network begins with weights that were learned elsewhere.
        """
        optimizer = self.optimizer or ("adamw" if tunes else "sgd")
        chosen: dict[str, Any] = {"optimizer": optimizer, "schedule": "cosine" if tunes else "onecycle"}
        if optimizer == "adamw":
            chosen |= {"lr": 1e-3, "weight_decay": 0.05}
        else:
            chosen |= {"lr": 0.01 if tunes else 0.1, "weight_decay": 5e-4}
        chosen |= {"backbone_lr": 0.1 if tunes else 1.0}
        given = {key: value for key in chosen if (value := getattr(self, key)) is not None}
        chosen |= given
        rises = chosen["schedule"] != "onecycle" and (tunes or optimizer == "adamw")
        warmup = (0.1 if rises else 0.0) if self.warmup is None else self.warmup
        own = {key: getattr(self, key) for key in ("epochs", "batch_size", "momentum", "ema", "augment")}
        return {**own, **chosen, "warmup": warmup}

    def recorded(self, *, tunes: bool) -> dict[str, Json]:
        """Return the settings as records have them: chosen, but for what no training of before had.

        Args:
            tunes: See :meth:`resolved`.
        """
        values = {**self.model_dump(mode="json"), **self.resolved(tunes=tunes), "augment": list(self.augment)}
        later = {"optimizer": "sgd", "backbone_lr": 1.0, "warmup": 0.0, "ema": 0.0}
        if all(values[key] == value for key, value in later.items()):
            return {key: value for key, value in values.items() if key not in later}
        return values


class RunConfig(_Section):
    """Everything that decides a run's result.

    Attributes:
        data: What to train on.
        model: A name from ``antibackdoor list models``, "timm:NAME", or "auto" for what suits the image size.
        weights: What the network begins with: "pretrained" for those that it is published with, or a safetensors file;
            drawn anew if None.
        input_size: Side in pixels that the network sees, whatever the images have; None for that of a network which
            begins with public weights, and else for that of the images.
        attack: What to plant, in experiments; None on data that is suspected itself.
        defence: How to train.
        train: How an undefended network would be trained.
        seed: Of every random choice.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
    """

    data: DataConfig = DataConfig()
    model: str = "auto"
    weights: str | None = None
    input_size: int | None = Field(default=None, ge=8)
    attack: PoisonConfig | None = None
    defence: Choice = Choice(name=DEFAULT_DEFENCE)
    train: TrainConfig = TrainConfig()
    seed: int = 0
    device: str = "auto"

    @staticmethod
    def parse(values: Mapping[str, object]) -> RunConfig:
        """Validate plain values.

        Raises:
            ConfigError: A value of the wrong type or outside its range; the message starts with its path.
            UnknownNameError: A key that does not exist; the message names the nearest that does.
        """
        try:
            return RunConfig.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise _unknown_key(first["loc"]) from None
            if first["type"] == "missing":
                raise ConfigError(f"{path}: missing; got no name, give one such as --set {path}=NAME") from None
            raise ConfigError(f"{path}: {first['msg']}, got {first['input']!r}") from None

    @staticmethod
    def load(path: Path) -> RunConfig:
        """Read a YAML file.

        Raises:
            ConfigError: The file is missing, no YAML, or not a valid configuration.
        """
        return RunConfig.parse(read_yaml(path))

    def dump(self) -> dict[str, Json]:
        """Return plain values; ``parse`` of them gives the same configuration."""
        values: dict[str, Json] = self.model_dump(mode="json", exclude={"attack", "defence"})
        values["attack"] = self.attack.flat() if self.attack else None
        values["defence"] = self.defence.flat()
        return values

    def recorded(self) -> dict[str, Json]:
        """Return plain values as records have them, whose keys are those of before as far as nothing new is asked for.

        What is None is chosen, as in :meth:`TrainConfig.resolved`.
        """
        values = {key: value for key, value in self.dump().items() if key not in _LATER or value is not None}
        return {**values, "train": self.train.recorded(tunes=self.weights is not None)}

    def to_yaml(self) -> str:
        """Return the configuration as YAML."""
        return yaml.safe_dump(self.dump(), sort_keys=False)


def read_yaml(path: Path) -> dict[str, object]:
    """Return the settings of a YAML file as plain values; none of an empty file.

    Raises:
        ConfigError: The file is missing, no YAML, or holds something else than settings by name.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except (OSError, *_NO_YAML) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must hold settings by name, not a {type(values).__name__}")
    return dict(values)


def _unknown_key(location: Iterable[int | str]) -> UnknownNameError:
    *parents, key = (str(part) for part in location)
    section: type[BaseModel] = RunConfig
    for parent in parents:
        annotation = section.model_fields[parent].annotation
        for option in get_args(annotation) or (annotation,):  # "PoisonConfig | None" is two options
            if isinstance(option, type) and issubclass(option, BaseModel):
                section = option
    return UnknownNameError(
        "setting", ".".join([*parents, key]), [".".join([*parents, k]) for k in section.model_fields]
    )


def apply_settings(values: Mapping[str, object], settings: Iterable[str]) -> dict[str, object]:
    """Return plain configuration values with ``section.key=value`` settings laid over them.

    Args:
        values: As from :meth:`RunConfig.dump`.
        settings: Each "path=value"; the value is read as YAML, so ``3``, ``true``, ``null`` and ``[crop, flip]`` work.

    Raises:
        ConfigError: A setting without "=", or with an unreadable value.
    """
    merged = copy.deepcopy(dict(values))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not all(path.strip().split(".")):
            raise ConfigError(f"--set {setting!r}: expected section.key=value, such as train.epochs=30")
        try:
            value = yaml.safe_load(text)
        except _NO_YAML:
            raise ConfigError(f"--set {setting!r}: the value cannot be read") from None
        set_path(merged, path.strip(), value)
    return merged


def set_path(values: dict[str, object], path: str, value: object) -> None:
    """Put a value at a dotted path, making the sections on the way.

    Choosing another member of a family (``defence.name``, ``attack.name``) drops the hyper-parameters of the last.

    Args:
        values: Plain configuration values; changed in place.
        path: Such as "train.epochs".
        value: What to put there.

    Raises:
        ConfigError: The path goes through something that is a value.
    """
    *parents, last = path.split(".")
    here = values
    for key in parents:
        child = here.get(key)
        if child is None:
            child = {}
        elif isinstance(child, str) and key in {"attack", "defence"}:
            child = {"name": child}
        if not isinstance(child, dict):
            raise ConfigError(f"{path}: {key!r} holds a value, not settings")
        here[key] = child
        here = child
    if last == "name" and here.get("name") not in {None, value}:
        # What every attack has stays with another one.
        for key in set(here) - ({"rate", "rate_of", "seed"} if parents == ["attack"] else set()):
            del here[key]
    here[last] = value
