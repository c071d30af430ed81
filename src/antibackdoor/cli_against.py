"""The option ``--against``: a batch of new images is compared with what an earlier run kept of its set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from antibackdoor.errors import ConfigError

__all__ = ["Runs", "with_runs"]

Runs = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        metavar="RUN",
        help="Compare DATA, a batch of new images, with what this finished run kept of its set, without training and "
        "without reading that set again; repeatable, runs are taken together. See docs/usage.md.",
    ),
]


def with_runs(values: Mapping[str, object], runs: Sequence[Path] | None, *, dry_run: bool) -> dict[str, object]:
    """Return the settings of a scan with those that ``--against`` stands for; the same where it is not given.

    Args:
        values: By their paths; None stands for what was not given.
        runs: Folders of finished runs.
        dry_run: Whether ``--dry-run`` is given.

    Raises:
        ConfigError: Another option excludes it.
        StorageError: A run holds no statistics, or they are damaged.
    """
    if not runs:
        return dict(values)
    if values.get("defence.name") is not None:
        raise ConfigError("--against and --defence exclude each other: a comparison trains nothing")
    if dry_run:
        raise ConfigError("--against and --dry-run exclude each other: a comparison trains nothing that takes long")
    from antibackdoor.defences.against import AGAINST, read

    _, height, width = read(runs[0]).kept.shape
    found: dict[str, object] = {
        "defence.name": AGAINST,
        **{key: values[key] for key in values if key != "defence.name"},
    }
    if height == width and values.get("data.image_size") is None:
        found["data.image_size"] = height  # so that images are resized as those of the runs were
    return {**found, "defence.runs": [str(run) for run in runs]}
