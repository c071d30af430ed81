"""``--dry-run``: what a run would read, and how long it would take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from antibackdoor.config import RunConfig
    from antibackdoor.progress import Progress

__all__ = ["tell"]


def tell(
    config: RunConfig, out: Path, *, scan_only: bool = False, resume: bool, overwrite: bool, progress: Progress
) -> None:
    """Print what is in the data of a run, and how long it will take; nothing is written.

    Args:
        config: What to do.
        out: Where the run would be.
        scan_only: It is a scan.
        resume: Continue the run in ``out``.
        overwrite: Replace the run in ``out``.
        progress: Shows the work.

    Raises:
        AntiBackdoorError: What the run itself would refuse, as far as its settings and a sample of the images show.
    """
    from antibackdoor.claiming import refuse_other_run
    from antibackdoor.defences import DEFENCES
    from antibackdoor.defences.requirements import check_requirements
    from antibackdoor.estimating import duration_of, look_into
    from antibackdoor.pipeline import network_of, plan_of
    from antibackdoor.training import Runtime

    refuse_other_run(out, resume=resume, overwrite=overwrite)
    defence = DEFENCES.build(config.defence.name, config.defence.params)
    check_requirements(defence, config, scan_only=scan_only)
    runtime = Runtime.create(config.device, config.train.precision)
    held = look_into(config.data, progress)
    for line in held.lines():
        typer.echo(line)
    build_model, spec = network_of(config, held.sample)
    lasts = duration_of(
        held.sample,
        held.images,
        build_model=build_model,
        plan=plan_of(config),
        defence=defence,
        runtime=runtime,
        scan_only=scan_only,
    )
    typer.echo(f"network: {spec.name} on {runtime.device}, {config.train.epochs} epochs, defence {config.defence.name}")
    for line in lasts.lines():
        typer.echo(line)
    typer.echo("dry run: nothing was trained or written")
