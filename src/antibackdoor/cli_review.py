"""The command ``review``: look at the suspects of a run and decide about them, in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["review"]


def review(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="Where the images are now, if they have moved.")
    ] = None,
    who: Annotated[
        str | None, typer.Option("--who", help="Noted with each decision. [default: your user name]")
    ] = None,
    near: Annotated[
        int | None,
        typer.Option(
            "--near", min=0, help="Unflagged images to show with the suspects. [default: as many, 100 at least]"
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in your browser.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the address only.")] = False,
) -> None:
    """Look at the suspects in a browser, on this machine alone, and decide; writes decisions.csv."""
    from antibackdoor.console import ConsoleProgress
    from antibackdoor.review.server import review_run

    progress = ConsoleProgress(quiet=quiet)
    review_run(run, data=data, who=who, near=near, port=port, browser=browser, progress=progress, say=typer.echo)
