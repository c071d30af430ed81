"""The options that several commands have, and what is made of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.config import RunConfig
    from antibackdoor.console import ConsoleProgress

__all__ = [
    "Alpha",
    "ConfigFile",
    "Data",
    "DecisionsFile",
    "Defence",
    "Device",
    "DryRun",
    "Epochs",
    "GroupBy",
    "ImageSize",
    "Model",
    "Optimizer",
    "OptionalDevice",
    "OptionalSeed",
    "Out",
    "Overwrite",
    "Pretrained",
    "Quiet",
    "Resume",
    "RunFolder",
    "Seed",
    "Settings",
    "SkipBad",
    "Track",
    "Weights",
    "configured",
    "progress_of",
    "run_values",
    "weights_of",
]

_DATA = (
    "A folder with one subfolder a class (or train/ and test/), a table of paths and labels (.csv, .parquet), parquet "
    "or tar files with images inside (a folder of them, or 'set-{000..009}.tar'), a .npz, 'embedded', or 'hub:NAME'."
)
Data = Annotated[str, typer.Argument(metavar="DATA", help=_DATA)]
Out = Annotated[Path, typer.Option("--out", help="Folder for the files of the run.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")]
Seed = Annotated[int, typer.Option("--seed", help="Of every random choice.")]
OptionalSeed = Annotated[int | None, typer.Option("--seed", help="Of every random choice; 0 by default.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
OptionalDevice = Annotated[str | None, typer.Option("--device", help="auto (default), cpu, cuda, cuda:1 or mps.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path, such as train.lr=0.05; repeatable."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run, or the poisoned set, in the output folder.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what is in DATA and how long the run will take; write nothing.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out, and list them in the record.")]
DecisionsFile = Annotated[
    Path | None, typer.Option("--decisions", help="CSV file of what a person decided; see docs/decisions.md.")
]
GroupBy = Annotated[
    str | None,
    typer.Option("--group-by", metavar="COLUMN", help="Column of a table by which flags are counted: who stands out."),
]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Resize to this side; else chosen by inspection.")]
Defence = Annotated[str | None, typer.Option("--defence", help="A name from `antibackdoor list defences`.")]
Alpha = Annotated[
    float | None,
    typer.Option("--alpha", help="Largest probability of calling a clean set poisoned. [default: 0.01]"),
]
Model = Annotated[str | None, typer.Option("--model", help="A name from `antibackdoor list models`.")]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Fine-tune: begin with the weights that the network is published with.")
]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="FILE", help="Begin with the weights of a safetensors file.")
]
Optimizer = Annotated[
    str | None, typer.Option("--optimizer", help="sgd or adamw. [default: sgd; adamw for fine-tuning]")
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of ordinary training.")]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="NAME", help="tensorboard, mlflow or wandb; repeatable. See docs/pipelines.md."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results only.")]


# Where in a configuration stands what the options of ``train`` and ``scan`` say.
_PLACES = {
    **{name: f"data.{name}" for name in ("source", "test", "image_size", "skip_bad", "decisions", "group_by")},
    **{"defence": "defence.name", "alpha": "defence.alpha"},
    **{name: f"train.{name}" for name in ("optimizer", "epochs")},
    **{name: name for name in ("model", "weights", "seed", "device")},
}


def run_values(**given: object) -> dict[str, object]:
    """Return what options say as values by their dotted place in a configuration; None where one was not given."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    return {_PLACES[name]: None if value is False else value for name, value in plain.items()}


def configured(path: Path | None, values: Mapping[str, object], settings: Sequence[str] | None) -> RunConfig:
    """Lay the options over the file, and ``--set`` over both; an option that was not given is None."""
    from antibackdoor.config import RunConfig, apply_settings, set_path

    base = RunConfig.load(path) if path is not None else RunConfig()
    merged: dict[str, object] = dict(base.dump())
    for key, value in values.items():
        if value is not None:
            set_path(merged, key, value)
    return RunConfig.parse(apply_settings(merged, settings or ()))


def weights_of(pretrained: bool, file: str | None) -> str | None:
    """Return what ``--pretrained`` and ``--weights`` ask a network to begin with.

    Raises:
        ConfigError: Both were given.
    """
    if pretrained and file is not None:
        raise ConfigError("--pretrained and --weights exclude each other: a network begins with one set of weights")
    return "pretrained" if pretrained else file


def progress_of(quiet: bool, *, beside: bool = False) -> ConsoleProgress:
    """Return what shows the work; one process alone does.

    Args:
        quiet: Show nothing.
        beside: Keep to standard error, since standard output holds a document.
    """
    from antibackdoor.console import ConsoleProgress

    return ConsoleProgress(quiet=quiet or os.environ.get("RANK", "0") != "0", beside=beside)
