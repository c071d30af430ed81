"""The commands ``predict`` and ``evaluate``: the network of a finished run on other images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antibackdoor.cli_options import Device, Quiet, RunFolder, progress_of
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.types import Metrics, RunRecord

__all__ = ["evaluate", "predict"]


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
    from antibackdoor.serialising import write_text

    predictions, unreadable = classify(run, paths, device=device, progress=progress_of(quiet))
    write_text(out, predictions_csv(predictions))
    for line in unreadable:
        typer.echo(f"left out: {line}", err=True)
    typer.echo(f"{len(predictions):,} predictions: {out}")


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
        run, clean=clean, triggered=triggered, target=index, device=device, progress=progress_of(quiet)
    )
    _print_metrics(metrics)


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
