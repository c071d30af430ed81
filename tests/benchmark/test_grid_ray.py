"""A grid on a real Ray cluster of two nodes on this machine, one of them killed half-way."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from antibackdoor.benchmark import RayPool, read_records, run_grid
from antibackdoor.errors import ConfigError

LOOPBACK = "127.0.0.1"


def test_numbers_that_cannot_be():
    for wrong in ({"gpus_per_cell": 0.0}, {"cpus_per_cell": -1.0}, {"threads": 0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            RayPool("auto", **wrong)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'antibackdoor\[ray\]'"):
        RayPool("auto").__enter__()


def test_an_address_where_nobody_answers():
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"--ray 127\.0\.0\.1:1: no such cluster"):
        RayPool(f"{LOOPBACK}:1").__enter__()


@pytest.fixture
def cluster(monkeypatch) -> Iterator[object]:
    """Two nodes of one processor each, reached over the loopback alone."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise Ray takes the address of a network card for that of the loopback.
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "node_ip_address": LOOPBACK, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    yield made
    made.shutdown()


class _Killer:
    """A watcher that takes a node away after a number of cells, and hears every end."""

    def __init__(self, after: int, kill: object) -> None:
        self.after, self.kill = after, kill
        self.ended_tasks: Counter[tuple[str, str]] = Counter()
        self.begun: Counter[tuple[str, str]] = Counter()
        self.slots = 0

    def begin(self, cells: object, known: object, slots: int) -> None:
        self.slots = slots

    def started(self, task) -> None:
        self.begun[task.kind, task.cell.file] += 1

    def ended(self, task, record) -> None:
        self.ended_tasks[task.kind, task.cell.file] += 1
        if sum(self.ended_tasks.values()) == self.after:
            self.kill()

    def close(self) -> None:
        pass


FIGURES = ("key", "cell", "status", "error", "metrics", "control", "verdict", "evidence", "curves", "config")


@pytest.mark.filterwarnings("default")
def test_a_node_killed_half_way_costs_nothing(grid, cluster, tmp_path, no_summaries):
    second = cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    made = grid(seeds=[0, 1], defences=["cbd"])
    killer = _Killer(4, lambda: cluster.remove_node(second, allow_graceful=False))
    out = tmp_path / "ray"
    done = run_grid(made, out, pool=RayPool(cluster.address, device="cpu"), watcher=killer)
    assert killer.slots == 2
    assert not done.failures, done.failures
    assert set(killer.ended_tasks.values()) == {1}, "a cell came back twice"
    assert killer.ended_tasks == killer.begun
    assert (len(done.records), done.ran) == (len(made.cells()), len(made.cells()))
    alone = run_grid(made, tmp_path / "alone")
    for there, here in zip(read_records(out), alone.records, strict=True):
        assert {name: there[name] for name in FIGURES} == {name: here[name] for name in FIGURES}
    assert {path.name for path in (out / "shared").iterdir()} == {
        path.name for path in (tmp_path / "alone" / "shared").iterdir()
    }
