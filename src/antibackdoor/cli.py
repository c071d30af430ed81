"""The command: parse, build a configuration, call, print. Everything heavy is imported where it is used."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from antibackdoor import cli_dry_run, cli_formats
from antibackdoor.cli_bench import bench
from antibackdoor.cli_compare import compare
from antibackdoor.cli_export import export
from antibackdoor.cli_formats import Baseline, BaselineRun, FailOn, FailOns, Formats
from antibackdoor.cli_review import review
from antibackdoor.cli_verify import verify
from antibackdoor.errors import AntiBackdoorError, ConfigError, one_line

if TYPE_CHECKING:
    from antibackdoor.config import RunConfig
    from antibackdoor.console import ConsoleProgress
    from antibackdoor.types import Metrics, RunRecord

__all__ = ["app", "main"]

# What a system says no with, where nobody nearer to it has said what was wanted; and what torch and threads say.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EFBIG)
NO_MEMORY = re.compile(r"can't (allocate memory|start new thread)|out of memory|Cannot allocate memory|bad_alloc")
EXIT_OURS, EXIT_USER, EXIT_FOUND, EXIT_INTERRUPTED = 1, 2, 3, 130

# What typer raises when the command line itself is wrong; it keeps a click of its own, so click's class is another.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Commands(TyperGroup):
    """The root command; its option ``--plugin`` is every command's too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        shared = [param for param in self.params if param.name == "plugin"]
        for command in self.commands.values():
            command.params += shared


app = typer.Typer(
    name="antibackdoor",
    cls=_Commands,
    help="Train a clean image classifier on data that may be poisoned, and name the images that should not be there.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DATA = (
    "A folder with one subfolder a class (or train/ and test/), a table of paths and labels (.csv, .parquet), parquet "
    "or tar files with images inside (a folder of them, or 'set-{000..009}.tar'), a .npz, 'embedded', or 'hub:NAME'."
)
Data = Annotated[str, typer.Argument(metavar="DATA", help=DATA)]
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


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"antibackdoor {version('antibackdoor')}")
        raise typer.Exit


def _load_plugins(paths: list[str] | None) -> None:
    if paths:
        from antibackdoor.api import load_plugin

        for path in paths:
            load_plugin(path)


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        expose_value=False,
        callback=_load_plugins,
        help="Python file with attacks, defences or signals of your own; repeatable. See docs/extend.md.",
    ),
]
Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Say the version.")]


@app.callback()
def _root(version: Version = False, plugin: Plugins = None) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the two runs.")] = Path("demo"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Plant a trigger in the embedded images, train undefended and defended, show both."""
    from rich.console import Console
    from rich.table import Table

    from antibackdoor.demo import demo as run_demo
    from antibackdoor.report.tables import percent

    result = run_demo(out, seed=seed, overwrite=overwrite, progress=_progress(quiet))
    table = Table(title="BadNets in 10 % of the embedded Fashion-MNIST images", title_justify="left")
    for name in ("", "clean accuracy", "attack success", "precision", "recall", "seconds"):
        table.add_column(name, justify="right" if name else "left")
    for name, metrics in (("undefended", result.undefended), ("defended", result.defended)):
        shares = (metrics.ca, metrics.asr, metrics.precision, metrics.recall)
        cells = ["-" if share is None else percent(share) for share in shares]
        table.add_row(name, *cells, f"{result.seconds[name]:.0f}")
    Console().print(table)
    m = result.defended
    typer.echo(
        f"clean accuracy: {m.n_test:,} test images; attack success: {m.n_triggered:,} triggered ones of other classes\n"
        f"precision: {m.n_flagged:,} flagged images; recall: {m.n_poison:,} poisoned of {m.n_train:,} training images"
    )
    typer.echo(f"report: {out / 'defended' / 'report.html'}")


@app.command()
def train(
    data: Data,
    out: Out,
    defence: Defence = None,
    alpha: Alpha = None,
    model: Model = None,
    pretrained: Pretrained = False,
    weights: Weights = None,
    optimizer: Optimizer = None,
    test: Annotated[str | None, typer.Option("--test", help="Clean test images: a folder, a table or a .npz.")] = None,
    epochs: Epochs = None,
    image_size: ImageSize = None,
    seed: OptionalSeed = None,
    device: OptionalDevice = None,
    config: ConfigFile = None,
    settings: Settings = None,
    decisions: DecisionsFile = None,
    group_by: GroupBy = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Train a network on data that may be poisoned, and list the suspects."""
    from antibackdoor.pipeline import run

    values = {
        "data.source": data,
        "data.test": test,
        "data.image_size": image_size,
        "data.skip_bad": skip_bad or None,
        "data.decisions": None if decisions is None else str(decisions),
        "data.group_by": group_by,
        "defence.name": defence,
        "defence.alpha": alpha,
        "model": model,
        "weights": _weights(pretrained, weights),
        "train.optimizer": optimizer,
        "train.epochs": epochs,
        "seed": seed,
        "device": device,
    }
    parsed = _config(config, values, settings)
    if dry_run:
        cli_dry_run.tell(parsed, out, resume=resume, overwrite=overwrite, progress=_progress(quiet))
        return
    run(parsed, out=out, resume=resume, overwrite=overwrite, progress=_progress(quiet), track=track or ())
    cli_formats.emit(out, cli_formats.requests(None))


@app.command()
def scan(
    data: Data,
    out: Out,
    format_: Formats = None,
    fail_on: FailOns = None,
    baseline: BaselineRun = None,
    fail_on_suspects: Annotated[bool, typer.Option("--fail-on-suspects", help="Short for --fail-on suspects.")] = False,
    defence: Defence = None,
    alpha: Alpha = None,
    model: Model = None,
    pretrained: Pretrained = False,
    weights: Weights = None,
    optimizer: Optimizer = None,
    epochs: Epochs = None,
    image_size: ImageSize = None,
    seed: OptionalSeed = None,
    device: OptionalDevice = None,
    config: ConfigFile = None,
    settings: Settings = None,
    decisions: DecisionsFile = None,
    group_by: GroupBy = None,
    skip_bad: SkipBad = False,
    dry_run: DryRun = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Score and flag the images, without training a network for use."""
    from antibackdoor.pipeline import run

    values = {
        "data.source": data,
        "data.image_size": image_size,
        "data.skip_bad": skip_bad or None,
        "data.decisions": None if decisions is None else str(decisions),
        "data.group_by": group_by,
        "defence.name": defence,
        "defence.alpha": alpha,
        "model": model,
        "weights": _weights(pretrained, weights),
        "train.optimizer": optimizer,
        "train.epochs": epochs,
        "seed": seed,
        "device": device,
    }
    parsed = _config(config, values, settings)
    if dry_run:
        asked_of = {"resume": resume, "overwrite": overwrite}
        cli_dry_run.tell(parsed, out, scan_only=True, progress=_progress(quiet), **asked_of)
        return
    asked, earlier = cli_formats.requests(format_), Baseline.read(baseline)
    progress = _progress(quiet, beside=cli_formats.documents(asked))
    result = run(
        parsed,
        out=out,
        scan_only=True,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        track=track or (),
    )
    cli_formats.emit(out, asked, earlier)
    levels = [*(fail_on or ()), *([FailOn.SUSPECTS] if fail_on_suspects else ())]
    if cli_formats.found(result.record, levels, out, earlier):
        raise typer.Exit(EXIT_FOUND)


@app.command()
def poison(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for the poisoned set.")],
    attack: Annotated[str, typer.Option("--attack", help="A name from `antibackdoor list attacks`.")],
    rate: Annotated[float, typer.Option("--rate", help="Share of the images to poison, 0..1.")],
    target: Annotated[str, typer.Option("--target", help="A class name, or its index in sorted order.")],
    image_size: ImageSize = None,
    seed: Seed = 0,
    device: Device = "auto",
    settings: Settings = None,
    skip_bad: SkipBad = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Plant an attack in a set of images, for experiments: writes PNG folders and a manifest of the truth."""
    from antibackdoor.exporting import export_poisoned, refuse_out
    from antibackdoor.pipeline import prepare_poison

    values = {
        "data.source": data,
        "data.image_size": image_size,
        "data.skip_bad": skip_bad or None,
        "attack.name": attack,
        "attack.rate": rate,
        "attack.target": target,
        "seed": seed,
        "device": device,
    }
    progress = _progress(quiet)
    refuse_out(out, data, overwrite=overwrite)
    planted = prepare_poison(_config(None, values, settings), progress)
    export_poisoned(out, planted.train, planted.triggered, overwrite=overwrite, progress=progress)
    count, total = int(planted.train.poison.sum()), len(planted.train.observed)
    typer.echo(f"{count:,} of {total:,} training images poisoned with {attack}: {out / 'train'}")
    if planted.triggered is not None:
        typer.echo(f"{len(planted.triggered.observed):,} triggered test images: {out / 'triggered_test'}")


@app.command()
def predict(
    run: RunFolder,
    paths: Annotated[list[Path], typer.Argument(metavar="PATHS...", help="Images, or folders read recursively.")],
    out: Annotated[Path, typer.Option("--out", help="CSV file for the predictions.")],
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Classify images with the network of a run."""
    from antibackdoor.prediction import predict as classify
    from antibackdoor.prediction import predictions_csv
    from antibackdoor.storage import write_text

    predictions, unreadable = classify(run, paths, device=device, progress=_progress(quiet))
    write_text(out, predictions_csv(predictions))
    for line in unreadable:
        typer.echo(f"left out: {line}", err=True)
    typer.echo(f"{len(predictions):,} predictions: {out}")


@app.command()
def evaluate(
    run: RunFolder,
    clean: Annotated[Path | None, typer.Option("--clean", help="Clean test images, one subfolder a class.")] = None,
    triggered: Annotated[
        Path | None, typer.Option("--triggered", help="Triggered images, one subfolder for each original class.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="Class name or index; needed for --triggered.")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure the network of a run on folders of images."""
    from antibackdoor.pipeline import class_index
    from antibackdoor.prediction import evaluate_run
    from antibackdoor.storage import read_record

    if clean is None and triggered is None:
        raise ConfigError("evaluate: give --clean DIR, --triggered DIR with --target CLASS, or both")
    if (triggered is None) != (target is None):
        raise ConfigError("evaluate: --triggered and --target go together")
    index = None
    if target is not None:
        index = class_index(tuple(map(str, _names(read_record(run)))), target, "--target")
    metrics = evaluate_run(
        run, clean=clean, triggered=triggered, target=index, device=device, progress=_progress(quiet)
    )
    _print_metrics(metrics)


app.command()(export)
app.command()(bench)
app.command()(review)
app.command()(verify)
app.command()(compare)


@app.command()
def report(run: RunFolder, format_: Formats = None) -> None:
    """Write the report of a finished run again; with --format, give its result out in a format of ``scan``."""
    from antibackdoor.report import write

    if format_:
        cli_formats.emit(run, cli_formats.requests(format_))
    else:
        typer.echo(f"report: {write(run)}")


@app.command("list")
def list_(
    family: Annotated[str, typer.Argument(metavar="attacks|defences|signals|models|datasets", help="What to list.")],
) -> None:
    """List what there is to choose from."""
    from antibackdoor.catalogue import FAMILIES, describe

    if family not in FAMILIES:
        from antibackdoor.errors import UnknownNameError

        raise UnknownNameError("family", family, FAMILIES)
    lines = describe(family)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:<{width}}  {text}")


@app.command()
def doctor() -> None:
    """Say what this machine offers and what is missing."""
    from antibackdoor.catalogue import diagnose

    lines = diagnose()
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:<{width}}  {text}")


def _config(path: Path | None, values: Mapping[str, object], settings: Sequence[str] | None) -> RunConfig:
    """Lay the options over the file, and ``--set`` over both; an option that was not given is None."""
    from antibackdoor.config import RunConfig, apply_settings, set_path

    base = RunConfig.load(path) if path is not None else RunConfig()
    merged: dict[str, object] = dict(base.dump())
    for key, value in values.items():
        if value is not None:
            set_path(merged, key, value)
    return RunConfig.parse(apply_settings(merged, settings or ()))


def _weights(pretrained: bool, file: str | None) -> str | None:
    if pretrained and file is not None:
        raise ConfigError("--pretrained and --weights exclude each other: a network begins with one set of weights")
    return "pretrained" if pretrained else file


def _progress(quiet: bool, *, beside: bool = False) -> ConsoleProgress:
    from antibackdoor.console import ConsoleProgress

    return ConsoleProgress(quiet=quiet or os.environ.get("RANK", "0") != "0", beside=beside)


def _names(record: RunRecord) -> list[object]:
    names = record.data.get("classes")
    return list(names) if isinstance(names, list) else []


def _print_metrics(metrics: Metrics) -> None:
    from antibackdoor.report.tables import metric_rows

    rows = metric_rows(metrics)
    if not rows:
        return
    names = max(len(row.name) for row in rows)
    values = max(len(row.value) for row in rows)
    for row in rows:
        typer.echo(f"{row.name:<{names}}  {row.value:>{values}}  {row.of}")


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"antibackdoor: {one_line(message)}", err=True)
    sys.exit(code)


def main() -> None:
    """Run the command; every way out has its exit code (see the module's constants)."""
    if any(given == "" or given in {"--out=", "--test=", "--config="} for given in sys.argv[1:]):
        _fail("an argument is empty; was a shell variable not set?", EXIT_USER)
    try:
        code = app(standalone_mode=False) or 0
        if code == EXIT_INTERRUPTED:  # typer turns an interrupt into this code
            raise KeyboardInterrupt
        sys.exit(code)
    except UsageError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        _fail(f"{message}{'' if message.endswith(('.', '?')) else '.'} Try --help", EXIT_USER)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except AntiBackdoorError as error:
        _fail(str(error), EXIT_USER)
    except (KeyboardInterrupt, typer.Abort):
        _fail(
            "interrupted; `train` and `scan` go on from the last epoch with --resume, `bench` with the same command",
            EXIT_INTERRUPTED,
        )
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader, such as `head`, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"the disk is full ({error.filename or 'no file named'})", EXIT_USER)
        if error.errno in REFUSED:
            _fail(f"the system refused: {error.strerror} ({error.filename or 'no file named'})", EXIT_USER)
        _ours(error)
    except Exception as error:  # noqa: BLE001 - the last resort of the command
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
            _fail(
                "there is not enough memory; smaller images (--image-size) and batches (--set train.batch_size=N) take "
                "less",
                EXIT_USER,
            )
        _ours(error)


def _ours(error: Exception) -> NoReturn:
    if os.environ.get("ANTIBACKDOOR_DEBUG"):
        raise error
    from antibackdoor import plugins

    if (fault := plugins.blame(error)) is not None:
        _fail(f"plugin {fault}; ANTIBACKDOOR_DEBUG=1 shows the traceback", EXIT_USER)
    names = " and ".join(plugin.name for plugin in plugins.from_files())
    ours = f"a fault of ours, or of what the plugin {names} returned" if names else "a fault of ours"
    _fail(
        f"{ours}: {type(error).__name__}: {error}. Please report it; ANTIBACKDOOR_DEBUG=1 shows the traceback",
        EXIT_OURS,
    )


if __name__ == "__main__":
    main()
