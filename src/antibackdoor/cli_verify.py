"""The command ``verify``: are the files of a run what was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antibackdoor.errors import StorageError

__all__ = ["verify"]


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or interrupted.")],
) -> None:
    """Compare every file of a run with its checksum; exit with 2 if one is damaged, changed or missing."""
    from antibackdoor.verifying import verify_run

    found = verify_run(run)
    damaged = [entry for entry in found if entry.problem is not None]
    for entry in found:
        if entry.problem is None:
            typer.echo(f"whole    {entry.name}")
    for entry in damaged:
        typer.echo(f"damaged  {entry.name}: {entry.problem}")
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise StorageError(f"{run}: {damaged[0].name}{more} of {len(found)} files not as written")
    typer.echo(f"{run}: all {len(found)} files are what was written")
