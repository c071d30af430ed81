"""The command ``compare``: what changed from one run to another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from antibackdoor.comparing import Comparison

__all__ = ["compare"]

_SHOWN = 20


def compare(
    before: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    after: Annotated[Path, typer.Argument(metavar="RUN", help="Another, of the same set or of what became of it.")],
    out: Annotated[Path | None, typer.Option("--out", help="CSV file for every image that changed.")] = None,
) -> None:
    """Say what changed from the first run to the second: verdict, suspects, accuracy, set and settings."""
    from antibackdoor.comparing import changes_csv, compare_runs
    from antibackdoor.formats.escaping import visible
    from antibackdoor.serialising import write_text
    from antibackdoor.storage import load_run

    comparison = compare_runs(load_run(before), load_run(after))
    rows = list(_rows(comparison))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        typer.echo(visible(f"{name:<{width}}  {text}"))
    if out is not None:
        write_text(out, changes_csv(comparison))
        typer.echo(f"{len(comparison.changed):,} images: {out}")


def _rows(comparison: Comparison) -> Iterator[tuple[str, str]]:
    old, new = comparison.verdicts
    yield "verdict", old if old == new else f"{old} -> {new}"
    counts = {name: comparison.count(name) for name in ("new suspect", "no longer suspect", "suspect left out")}
    yield (
        "suspects",
        f"{comparison.suspects:,} in both, {counts['new suspect']:,} new, {counts['no longer suspect']:,} no longer, "
        f"{counts['suspect left out']:,} not in the second set",
    )
    added = sum(entry.added for entry in comparison.changed)
    gone = comparison.count("left out") + counts["suspect left out"]
    sets = [f"{comparison.both:,} in both", f"{gone:,} only in the first", f"{added:,} only in the second"]
    more = {
        "renamed": comparison.renamed,
        "with other pixels": comparison.redrawn,
        "relabelled": comparison.relabelled,
    }
    sets += [f"{count:,} {name}" for name, count in more.items() if count]
    yield "images", ", ".join(sets)
    for name, *values, points in comparison.figures:
        yield name.lower(), f"{values[0]} -> {values[1]}" + (f" ({points})" if points else "")
    for path, was, now in (*comparison.settings, *comparison.versions):
        yield path, f"{was} -> {now}"
    new_ones = [entry for entry in comparison.changed if entry.change == "new suspect"]
    for entry in new_ones[:_SHOWN]:
        yield "new suspect", f"{entry.id} ({entry.label})"
    if len(new_ones) > _SHOWN:
        yield "", f"and {len(new_ones) - _SHOWN:,} more; --out FILE has all"
