"""The commands ``train`` and ``scan``: whole runs on data that may be poisoned."""

from __future__ import annotations

from typing import Annotated

import typer

from antibackdoor import cli_against, cli_dry_run, cli_formats
from antibackdoor.cli_exits import EXIT_FOUND
from antibackdoor.cli_formats import Baseline, BaselineRun, FailOn, FailOns, Formats
from antibackdoor.cli_options import (
    Alpha,
    ConfigFile,
    Data,
    DecisionsFile,
    Defence,
    DryRun,
    Epochs,
    GroupBy,
    ImageSize,
    Model,
    Optimizer,
    OptionalDevice,
    OptionalSeed,
    Out,
    Overwrite,
    Pretrained,
    Quiet,
    Resume,
    Settings,
    SkipBad,
    Track,
    Weights,
    configured,
    progress_of,
    run_values,
    weights_of,
)

__all__ = ["scan", "train"]


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

    values = run_values(
        source=data,
        test=test,
        image_size=image_size,
        skip_bad=skip_bad,
        decisions=decisions,
        group_by=group_by,
        defence=defence,
        alpha=alpha,
        model=model,
        weights=weights_of(pretrained, weights),
        optimizer=optimizer,
        epochs=epochs,
        seed=seed,
        device=device,
    )
    parsed = configured(config, values, settings)
    if dry_run:
        cli_dry_run.tell(parsed, out, resume=resume, overwrite=overwrite, progress=progress_of(quiet))
        return
    run(parsed, out=out, resume=resume, overwrite=overwrite, progress=progress_of(quiet), track=track or ())
    cli_formats.emit(out, cli_formats.requests(None))


def scan(
    data: Data,
    out: Out,
    format_: Formats = None,
    fail_on: FailOns = None,
    baseline: BaselineRun = None,
    against: cli_against.Runs = None,
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

    values = run_values(
        source=data,
        image_size=image_size,
        skip_bad=skip_bad,
        decisions=decisions,
        group_by=group_by,
        defence=defence,
        alpha=alpha,
        model=model,
        weights=weights_of(pretrained, weights),
        optimizer=optimizer,
        epochs=epochs,
        seed=seed,
        device=device,
    )
    parsed = configured(config, cli_against.with_runs(values, against, dry_run=dry_run), settings)
    if dry_run:
        cli_dry_run.tell(parsed, out, scan_only=True, resume=resume, overwrite=overwrite, progress=progress_of(quiet))
        return
    levels = [*(fail_on or ()), *([FailOn.SUSPECTS] if fail_on_suspects else ())]
    asked, earlier = cli_formats.requests(format_), Baseline.read(baseline)
    progress = progress_of(quiet, beside=cli_formats.documents(asked))
    result = run(
        parsed, out=out, scan_only=True, resume=resume, overwrite=overwrite, progress=progress, track=track or ()
    )
    cli_formats.emit(out, asked, earlier)
    if cli_formats.found(result.record, levels, out, earlier):
        raise typer.Exit(EXIT_FOUND)
