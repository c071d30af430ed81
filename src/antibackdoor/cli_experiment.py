"""The commands ``demo`` and ``poison``: backdoors that are planted on purpose, in experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antibackdoor.cli_options import (
    Data,
    Device,
    ImageSize,
    Overwrite,
    Quiet,
    Seed,
    Settings,
    SkipBad,
    configured,
    progress_of,
)

__all__ = ["demo", "poison"]


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

    result = run_demo(out, seed=seed, overwrite=overwrite, progress=progress_of(quiet))
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
    progress = progress_of(quiet)
    refuse_out(out, data, overwrite=overwrite)
    planted = prepare_poison(configured(None, values, settings), progress)
    export_poisoned(out, planted.train, planted.triggered, overwrite=overwrite, progress=progress)
    count, total = int(planted.train.poison.sum()), len(planted.train.observed)
    typer.echo(f"{count:,} of {total:,} training images poisoned with {attack}: {out / 'train'}")
    if planted.triggered is not None:
        typer.echo(f"{len(planted.triggered.observed):,} triggered test images: {out / 'triggered_test'}")
