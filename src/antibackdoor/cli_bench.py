"""The command ``bench``: parse, load the grid, run it, say what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antibackdoor import errors
from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from antibackdoor.benchmark import Finished, Pool
    from antibackdoor.types import Json

__all__ = ["bench"]

_EXIT_FAILED = 1


def bench(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with the grid; see benchmarks/grids/.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for records and tables; a second call goes on there.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=SOURCE", help="Where a data set of the grid lies; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path, such as seeds=[0]; repeatable."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", help="Cells at once. [default: 4 a GPU; on a CPU, processors / threads]"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="CPU threads of each cell. [default: 1]; results depend on it a little."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT or local."
        ),
    ] = None,
    gpus_per_cell: Annotated[float, typer.Option("--gpus-per-cell", help="Of the Ray cluster, for each cell.")] = 0.25,
    cpus_per_cell: Annotated[float, typer.Option("--cpus-per-cell", help="Of the Ray cluster, for each cell.")] = 1.0,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed/--keep-failed", help="Run cells that failed before once more, or leave them."),
    ] = True,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="DIR", help="Compare with the grid in DIR; exit with 1 where it differs."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print results only.")] = False,
) -> None:
    """Run a grid of data sets x attacks x rates x defences x networks x seeds, and write its tables.

    Only cells without a record are run. Exit code 1: a cell failed, or differs from --against.
    """
    from antibackdoor.benchmark import GridConfig, compare, read_records, run_grid
    from antibackdoor.console_grid import GridConsole

    grid = GridConfig.load(config, [*(settings or ()), *((f"device={device}",) if device else ())])
    grid = grid.with_sources(_sources(data or ()))
    reference = None if against is None else read_records(against)
    pool = _pool(grid.device, jobs, threads, ray, gpus_per_cell, cpus_per_cell)
    finished = run_grid(grid, out, pool=pool, retry_failed=retry_failed, watcher=GridConsole(quiet=quiet))
    _report(finished)
    differences = [] if reference is None else compare(finished.records, reference)
    for line in differences:
        typer.echo(f"differs: {line}", err=True)
    if reference is not None and not differences:
        typer.echo(f"every figure is inside the spread of {against}")
    if finished.failures or differences:
        raise typer.Exit(_EXIT_FAILED)


def _pool(
    device: str, jobs: int | None, threads: int | None, ray: str | None, gpus_per_cell: float, cpus_per_cell: float
) -> Pool:
    from antibackdoor.benchmark import RayPool, local_pool

    if ray is None:
        return local_pool(device, jobs, threads)
    if jobs is not None:
        raise ConfigError("--jobs is for one machine; with --ray give --cpus-per-cell and --gpus-per-cell")
    return RayPool(ray, gpus_per_cell, cpus_per_cell, device, 1 if threads is None else threads)


def _sources(given: Iterable[str]) -> dict[str, str]:
    sources = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (equals and name and source):
            raise ConfigError(f"--data {text!r}: expected NAME=SOURCE, such as cifar10=/data/cifar10")
        sources[name] = source
    return sources


def _report(finished: Finished) -> None:
    count, failures = len(finished.records), finished.failures
    typer.echo(f"{count} cells: {finished.ran} run now, {count - finished.ran} from before, {len(failures)} failed")
    for record in failures:
        names, error = record["cell"], record["error"]
        if isinstance(names, dict) and isinstance(error, dict):
            rate = "" if names["rate"] is None else f"@{names['rate']}"
            what = f"{names['data']} {names['attack_label']}{rate} {names['defence_label']} {names['model']}"
            said = f"{error['type']}: {error['message']}{_where(error)}"
            typer.echo(f"failed: {what} seed {names['seed']}: {said}", err=True)
    for file in finished.files:
        if file.suffix in {".html", ".md"}:
            typer.echo(f"{file.stem}: {file}")


def _where(error: Mapping[str, Json]) -> str:
    """Return the places that an error came through; nothing for those of ours, whose message says what to do."""
    where = error.get("where")  # records of earlier versions have none
    if error["type"] in errors.__all__ or not isinstance(where, list) or not where:
        return ""
    return f" [{' > '.join(map(str, where))}]"
