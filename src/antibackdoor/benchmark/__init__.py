"""Grids of runs: a product of data sets, attacks, rates, defences, networks and seeds, its records and its tables."""

from antibackdoor.benchmark.bench import Finished, run_grid
from antibackdoor.benchmark.cells import Cell
from antibackdoor.benchmark.compare import compare
from antibackdoor.benchmark.folder import Record, read_records
from antibackdoor.benchmark.grid import GridConfig
from antibackdoor.benchmark.pools import LocalPool, Pool, RayPool, local_pool
from antibackdoor.benchmark.watch import NOBODY, Watcher

__all__ = [
    "NOBODY",
    "Cell",
    "Finished",
    "GridConfig",
    "LocalPool",
    "Pool",
    "RayPool",
    "Record",
    "Watcher",
    "compare",
    "local_pool",
    "read_records",
    "run_grid",
]
