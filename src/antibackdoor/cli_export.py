"""The command ``export``: what a run leaves of its set, handed on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antibackdoor.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from antibackdoor.imagelist import ImageList
    from antibackdoor.types import RunRecord

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write, or the file of a list.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="folder: cleaned images, quarantine, list; hf: the same for Hugging Face; csv, parquet, json: "
            "the list; torch-export, onnx: the network.",
        ),
    ] = "folder",
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Where the images are now, if they were moved.")
    ] = None,
    decisions: Annotated[
        Path | None, typer.Option("--decisions", help="CSV file of what a person decided; see docs/decisions.md.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files; by default they are linked to.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print results only.")] = False,
) -> None:
    """Write the cleaned set, the quarantine and the list of a run, for what comes next."""
    from antibackdoor.cleaned import FORMATS
    from antibackdoor.cleaned import export as write
    from antibackdoor.console import ConsoleProgress
    from antibackdoor.portable import NETWORKS, export_network
    from antibackdoor.storage import read_record

    if to in NETWORKS:
        if data is not None or decisions is not None or copy:
            raise ConfigError(f"export: --data, --decisions and --copy say nothing to --to {to}")
        difference = export_network(run, dest, to, overwrite=overwrite)
        typer.echo(f"network: {dest}; on the images of the report its probabilities differ by {difference:.1g} at most")
        return
    if to not in FORMATS:
        raise UnknownNameError("format", to, [*FORMATS, *NETWORKS])
    images = write(
        run,
        dest,
        to,
        source=data,
        decisions=decisions,
        copy=copy,
        overwrite=overwrite,
        progress=ConsoleProgress(quiet=quiet),
    )
    if decisions is None and (run / "decisions.csv").is_file():
        typer.echo(f"{run / 'decisions.csv'} is not looked at; --decisions {run / 'decisions.csv'} does that", err=True)
    _tell(images, read_record(run), dest, folders=to in ("folder", "hf"))


def _tell(images: ImageList, record: RunRecord, dest: Path, *, folders: bool) -> None:
    """Print what was written, and what of the set is in neither part."""
    from antibackdoor.cleaned import CLEAN, LIST, QUARANTINE

    left_out = sum(images.suspect)
    typer.echo(f"verdict: {record.verdict}")
    if folders:
        typer.echo(f"cleaned set: {len(images) - left_out:,} images: {dest / CLEAN}")
        typer.echo(f"quarantine: {left_out:,} images: {dest / QUARANTINE}")
    typer.echo(f"list: {len(images):,} images, {left_out:,} of them suspects: {dest / LIST if folders else dest}")
    stays = {label for label, left in zip(images.label, images.suspect, strict=True) if not left}
    if gone := sorted(set(images.label) - stays):
        typer.echo(f"no image of {', '.join(map(repr, gone))} is left in the cleaned set")
    skipped = record.data.get("skipped")
    if isinstance(skipped, list) and skipped:
        typer.echo(f"{len(skipped):,} files that the run could not read are in neither, first {skipped[0]!r}")
