"""What holds on a GPU, against the CPU and against itself; skipped where there is none. Run by ``pytest -m gpu``.

Tolerances: losses and logits in float32 (TF32 off) within 1e-3 of the CPU's, relative to 1 or more, after the same few
updates; in bfloat16 within 5e-2. Bits are compared where both sides run on the GPU with deterministic convolutions.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from antibackdoor import plugins
from antibackdoor.benchmark import GridConfig, LocalPool, run_grid
from antibackdoor.data.batches import Batches
from antibackdoor.models import builder_from
from antibackdoor.ops.augment import AUGMENTATIONS, augment
from antibackdoor.progress import Silent
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Phase, Runtime, Trainer, TrainPlan, logits_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # products repeat bit for bit on several streams too
PLAN = TrainPlan(epochs=2, batch_size=32, lr=0.05, schedule="constant", augment=())
EXACT, CLOSE = 1e-3, 5e-2


@pytest.fixture(autouse=True)
def _repeatable(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def data(blobs):
    return blobs(200, 10, height=32, width=32)


def runtime_on(device, precision="fp32", compile_mode="off"):
    return Runtime.create(device, precision, compile_mode)


def trained(data, runtime, plan=PLAN, **options):
    """Train a small residual network; returns its weights on the CPU and the history."""
    build, _ = builder_from("wrn-10-1", data)
    model = build(Seeds(0).generator("init"))
    history = Trainer(runtime, Seeds(0), **options).fit(model, data, Phase("train", plan))
    return {name: value.cpu() for name, value in model.state_dict().items()}, history


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def assert_near(ours, reference, tolerance):
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert np.isfinite(ours).all()
    assert np.abs(ours - reference).max() <= tolerance * max(1.0, np.abs(reference).max())


def test_the_first_epoch_has_the_losses_of_the_cpu(data):
    plan = PLAN.but(epochs=1, lr=1e-3)
    _, here = trained(data, runtime_on("cpu"), plan)
    _, there = trained(data, runtime_on("cuda"), plan)
    assert_near(there.losses, here.losses, EXACT)
    _, half = trained(data, runtime_on("cuda", "bf16"), plan)
    assert_near(half.losses, here.losses, CLOSE)


def test_logits_are_those_of_the_cpu(data):
    build, _ = builder_from("wrn-10-1", data)
    model = build(Seeds(0).generator("init"))
    here = logits_of(model, data, runtime_on("cpu"))
    for precision, tolerance in (("fp32", EXACT), ("bf16", CLOSE)):
        runtime = runtime_on("cuda", precision)
        runtime.place(model)
        assert_near(logits_of(model, data, runtime, batch_size=64), here, tolerance)


def test_it_learns_in_the_precision_of_the_card(data):
    runtime = Runtime.create("cuda")
    assert runtime.dtype == (
        torch.bfloat16 if torch.cuda.get_device_capability(runtime.device)[0] >= 8 else torch.float32
    )
    _, history = trained(data, runtime, PLAN.but(epochs=20, augment=("crop", "flip", "cutout")))
    assert history.losses[-1].mean() < 0.7 * history.losses[0].mean()


@pytest.mark.parametrize("names", [(), ("crop", "flip", "cutout")])
def test_a_seed_decides_every_bit(data, names):
    plan = PLAN.but(augment=names)
    weights, history = trained(data, runtime_on("cuda"), plan)
    again, history_again = trained(data, runtime_on("cuda"), plan)
    assert same(weights, again)
    assert np.array_equal(history.losses, history_again.losses)


class StopAfter(Silent):
    """Ctrl-C at the note that an epoch leaves."""

    @contextmanager
    def bar(self, title, total, unit):
        class Bar:
            def advance(self, steps=1, note=""):
                if note:
                    raise KeyboardInterrupt

        yield Bar()


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(data, tmp_path):
    plan = PLAN.but(epochs=3, augment=("crop", "flip"))
    whole, history = trained(data, runtime_on("cuda"), plan)
    with pytest.raises(KeyboardInterrupt):
        trained(data, runtime_on("cuda"), plan, checkpoints=Checkpoints(tmp_path, resume=False), progress=StopAfter())
    resumed, rest = trained(data, runtime_on("cuda"), plan, checkpoints=Checkpoints(tmp_path, resume=True))
    assert same(whole, resumed)
    assert np.array_equal(history.losses, rest.losses)


def test_two_streams_at_once_give_the_bits_of_one(data):
    alone, _ = trained(data, runtime_on("cuda"))
    found = {}

    def work(number):
        with torch.cuda.stream(torch.cuda.Stream()):
            found[number], _ = trained(data, runtime_on("cuda"))
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1]
    assert all(same(alone, weights) for weights in found.values())


@pytest.mark.parametrize("mode", ["on", "graphs"])
def test_compiled_training_is_near_to_the_uncompiled(data, mode):
    plan = PLAN.but(epochs=1, lr=1e-3, batch_size=50)
    _, plain = trained(data, runtime_on("cuda"), plan)
    _, compiled = trained(data, runtime_on("cuda", compile_mode=mode), plan)
    assert_near(compiled.losses, plain.losses, EXACT)


def test_batches_are_the_same_resident_or_not(data):
    device = torch.device("cuda", 0)
    index = torch.tensor([5, 0, 199, 5])
    for resident in (True, False):
        for rows in (index, index.to(device)):
            images, labels = Batches(data, device, resident=resident).take(rows)
            assert images.device == labels.device == device
            assert torch.equal(images.cpu(), data.images[index])
            assert torch.equal(labels.cpu(), data.labels[index])
    assert Batches(data, device).resident


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_on_the_card_follow_their_generator(data, name):
    images = data.images[:16].cuda()

    def once(seed):
        return augment(images, (name,), torch.Generator("cuda").manual_seed(seed))

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    # The same draws, made on the CPU, move the same pixels.
    drawn = augment(images, (name,), torch.Generator().manual_seed(1)).cpu()
    assert torch.equal(drawn, augment(images.cpu(), (name,), torch.Generator().manual_seed(1)))


def test_a_training_leaves_no_memory_behind(data):
    trained(data, runtime_on("cuda"))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        trained(data, runtime_on("cuda"))
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


HUNGRY = '''
"""A defence that asks for more memory than any card has, once; then it trains as usual."""
from dataclasses import dataclass
from pathlib import Path

import torch

from antibackdoor.defences.none import NoDefence


@dataclass(frozen=True)
class Hungry(NoDefence):
    """Hungry.

    Attributes:
        mark: A file that is there as long as it was not hungry yet.
    """

    mark: str = ""

    def run(self, data, **rest):
        if Path(self.mark).exists():
            Path(self.mark).unlink()
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return super().run(data, **rest)


DEFENCES = {"hungry": Hungry}
'''


def test_a_cell_that_ran_out_of_memory_beside_others_is_run_again(tmp_path, monkeypatch):
    (tmp_path / "hungry.py").write_text(HUNGRY, encoding="utf-8")
    mark = tmp_path / "mark"
    mark.touch()
    monkeypatch.setattr(plugins, "_known", plugins._Known())
    plugins.load(plugins.PluginFile.read(tmp_path / "hungry.py"))
    grid = GridConfig.parse(
        {
            "data": [{"name": "pictures", "source": "embedded", "limit": 100, "limit_test": 50}],
            "attacks": ["badnets"],
            "defences": ["none", {"name": "hungry", "mark": str(mark)}],
            "models": ["wrn-10-1"],
            "train": {"epochs": 1, "batch_size": 50},
            "device": "cuda",
            "skip": [{"attack": "none", "defence": "hungry"}],
        }
    )
    finished = run_grid(grid, tmp_path / "out", pool=LocalPool(2))
    assert not mark.exists()
    assert [record["status"] for record in finished.records] == ["done"] * 3
