"""Two processes on one CPU, against one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("distributed_worker.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(out: Path, processes: int) -> None:
    command = [sys.executable]
    if processes > 1:
        # ``accelerate launch --cpu`` starts one process, whatever their number; torch's launcher starts them all, and
        # accelerate finds them by the same variables.
        command += ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
    }
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        environment.pop(name, None)
    done = subprocess.run(
        [*command, str(WORKER), str(out)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What each process left: {(processes, rank): arrays}."""
    out = tmp_path_factory.mktemp("distributed")
    launch(out, 1)
    launch(out, 2)
    found = {}
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        with np.load(out / f"{world}-{rank}.npz") as file:
            found[world, rank] = dict(file)
    found["files"] = sorted(path.name for path in (out / "checkpoints-2").iterdir())
    return found


def test_there_were_two(saved):
    assert [int(saved[key]["world"]) for key in ((1, 0), (2, 0), (2, 1))] == [1, 2, 2]


@pytest.mark.parametrize("world", [1, 2])
def test_every_image_is_trained_on_once_an_epoch(saved, world):
    held_out = np.arange(101) % 13 == 0
    for rank in range(world):
        assert np.array_equal(saved[world, rank]["counts"], np.where(held_out, 0, 2))
    shares = [int(saved[world, rank]["mine"].sum()) for rank in range(world)]
    assert max(shares) - min(shares) <= 2 * 6  # one image more for the first of two, in an odd batch


def test_every_image_is_scored_once_an_epoch(saved):
    held_out, subset = np.arange(101) % 13 == 0, np.arange(101) < 60
    for world in (1, 2):
        arrays = saved[world, 0]
        assert np.isfinite(arrays["losses first"]).all()
        assert (arrays["losses first"] > 0).all()
        # A loss summed twice, or a share of the images that one process kept for itself, would show here: log 5 is 1.6.
        assert 0.8 < arrays["losses first"][0].mean() < 3
        assert np.array_equal(np.isnan(arrays["losses second"][0]), ~subset & ~held_out)
        assert np.isfinite(arrays["losses third"]).all()


def test_both_processes_end_with_the_same(saved):
    first, second = saved[2, 0], saved[2, 1]
    for name in first:
        if name != "mine":
            same = {"equal_nan": True} if first[name].dtype.kind == "f" else {}
            assert np.array_equal(first[name], second[name], **same), name


def test_the_first_process_decides_for_all(saved):
    assert [int(saved[2, rank]["heard"]) for rank in (0, 1)] == [0, 0]
    assert len(saved[2, 1]["phases"]) > 1
    assert saved[2, 1]["cleaned"].any()


def test_without_drawing_two_processes_do_what_one_does(saved):
    one, two = saved[1, 0], saved[2, 0]
    assert np.allclose(one["linear"], two["linear"], atol=1e-5)
    assert np.allclose(one["losses linear"], two["losses linear"], atol=1e-4)


def test_two_processes_learn_as_well_as_one(saved):
    one, two = saved[1, 0], saved[2, 0]
    assert two["losses third"][-1].mean() < 0.7 * two["losses first"][0].mean()
    # Two shares of 93 images each differ by chance: three standard deviations of the difference.
    chance = 3 * np.sqrt(2 * 0.25 / 93)
    assert two["accuracy third"][-1] > one["accuracy third"][-1] - chance


def test_isolation_is_as_precise_with_two_processes(saved):
    one, two = saved[1, 0]["precision"], saved[2, 0]["precision"]
    assert len(one) == len(two) == 3
    assert one.mean() > 0.5  # poison is a tenth of the images
    spread = max(one.std(ddof=1), two.std(ddof=1), 0.05)
    assert abs(one.mean() - two.mean()) <= 2 * spread


def test_one_process_writes(saved):
    assert saved["files"] == ["first.safetensors", "second.safetensors", "third.safetensors"]
