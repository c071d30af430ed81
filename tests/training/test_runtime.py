from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from antibackdoor.errors import DeviceError
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Runtime, Trainer, TrainPlan, memory, runtime


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:97", r"'cuda:97' is not there.*--device auto"),
        ("nonsense", "'nonsense' is not a device name; use auto, cpu, cuda"),
        ("", "is not a device name"),
        ("meta", "'meta' is not supported"),
    ],
)
def test_a_device_that_is_not_there(name, message):
    with pytest.raises(DeviceError, match=message):
        Runtime.create(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_not_there():
    for name in ("cuda", "cuda:7"):
        with pytest.raises(DeviceError, match="shows 0 CUDA devices"):
            Runtime.create(name)
    assert Runtime.create("auto").device.type == "cpu"


@pytest.mark.parametrize(
    ("given", "local_rank", "world", "card"),
    [(None, 0, 1, 0), (None, 3, 4, 3), (0, 1, 1, 0), (0, 0, 4, 0), (2, 0, 1, 2), (1, 1, 4, 1)],
)
def test_the_card_is_the_one_given_or_that_of_the_rank(given, local_rank, world, card):
    assert runtime._card(given, local_rank, world) == card


@pytest.mark.parametrize("given", [0, 2])
def test_one_card_for_several_processes_is_refused(given):
    with pytest.raises(DeviceError, match=f"'cuda:{given}' is one card, but 4 processes.*use --device cuda$"):
        runtime._card(given, 1, 4)


@pytest.mark.parametrize(("name", "index"), [("auto", 1), ("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_card_beside_a_rank(monkeypatch, name, index):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime._resolve_device(name) == torch.device("cuda", index)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_precision_that_is_asked_for(precision, dtype):
    made = Runtime.create("cpu", precision)
    assert made.dtype == dtype
    assert made.reason.endswith("as asked")


@pytest.mark.parametrize(
    ("flags", "level", "dtype", "reason"),
    [
        ({"avx2"}, "AVX2", torch.float32, "no bfloat16 instructions"),
        ({"avx512f"}, "AVX512", torch.float32, "no bfloat16 instructions"),
        ({"avx512_bf16"}, "AVX512", torch.bfloat16, "AVX512-BF16"),
        ({"avx512_bf16", "amx_bf16"}, "AVX512_VNNI", torch.bfloat16, "AMX"),
        ({"avx512_bf16"}, "DEFAULT", torch.float32, "no bfloat16 instructions"),
        (set(), "AVX512", torch.float32, "no bfloat16 instructions"),
    ],
)
def test_the_precision_of_a_cpu_follows_its_instructions(monkeypatch, flags, level, dtype, reason):
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    made = Runtime.create("cpu")
    assert made.dtype == dtype
    assert reason in made.reason


def test_a_record_says_where_and_why():
    made = Runtime.create("cpu", "fp32", "off")
    told = made.describe()
    assert told["type"] == "cpu"
    assert told["precision"] == "float32"
    assert told["reason"] == made.reason
    assert told["processes"] == 1
    assert told["threads"] == torch.get_num_threads()
    assert told["name"]


def test_alone_there_is_nothing_to_sum_or_to_agree_on():
    made = Runtime.create("cpu", "fp32")
    tensor, model = torch.rand(3), nn.BatchNorm2d(2)
    before = model.running_var.clone()
    assert made.sum(tensor) is tensor
    made.agree(model)
    made.wait()
    assert torch.equal(model.running_var, before)
    assert (made.rank, made.world) == (0, 1)
    assert made.parallel(model) is model


def test_only_the_statistics_of_batch_normalisation_are_averaged():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.register_buffer("step", torch.tensor([7.0]))

    # The other process has the same values and one more.
    other = SimpleNamespace(num_processes=2, process_index=0, reduce=lambda tensor, reduction: 2 * tensor + 1)
    model = Net()
    Runtime(torch.device("cpu"), torch.float32, "", "off", other).agree(model)
    assert model.norm.running_mean.tolist() == [0.5, 0.5]
    assert model.norm.running_var.tolist() == [1.5, 1.5]
    assert int(model.norm.num_batches_tracked) == 0
    assert model.step.tolist() == [7.0]


@pytest.mark.parametrize(
    ("mode", "images", "expected"),
    [("on", 1, True), ("graphs", 1, True), ("off", 10**9, False), ("auto", 10**9, False)],
)
def test_when_to_compile_on_a_cpu(mode, images, expected):
    assert Runtime.create("cpu", "fp32", mode).compiles(images) is expected


def test_bfloat16_trains_with_float32_weights_and_losses(blobs, tiny, plan):
    data = blobs(64)
    model = tiny(data)(Seeds(0).generator("init"))
    history = Trainer(Runtime.create("cpu", "bf16", "off"), Seeds(0)).fit(model, data, Phase("train", plan))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert history.losses.dtype == "float32"
    assert history.losses[-1].mean() < history.losses[0].mean()


@pytest.mark.parametrize(
    ("device", "mode", "asked"),
    [
        ("cpu", "off", []),
        ("cpu", "on", [None]),
        ("cpu", "graphs", [None]),
        ("cuda", "on", [None]),
        ("cuda", "graphs", ["reduce-overhead"]),
    ],
)
def test_what_is_compiled_and_how(monkeypatch, device, mode, asked):
    seen, marks = [], []
    monkeypatch.setattr(torch, "compile", lambda net, mode=None: seen.append(mode) or "compiled")
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    made, net = Runtime(torch.device(device), torch.float32, "", mode), nn.Linear(2, 2)
    found = made.compiled(net, 100)
    made.begin_step()
    assert seen == asked
    assert found is net if not asked else found == "compiled"
    assert len(marks) == (asked == ["reduce-overhead"])


@pytest.mark.parametrize(("device", "fused"), [("cpu", None), ("cuda", True)])
def test_the_optimiser_is_fused_on_a_gpu(device, fused):
    trainer = Trainer(Runtime(torch.device(device), torch.float32, "", "off"), Seeds(0))
    optimizer, _ = trainer._optimizer_of(nn.Linear(2, 2), Phase("train", TrainPlan()))
    assert optimizer.defaults["fused"] is fused


@pytest.fixture
def _unset(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_unset")
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")]
)
def test_the_users_own_settings_of_memory_stay(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not memory.keep_freed_memory.__wrapped__()


@pytest.mark.usefixtures("_unset")
def test_memory_is_kept_by_glibc_alone(monkeypatch):
    asked = []
    library = SimpleNamespace(mallopt=lambda *values: asked.append(values) or 1)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    assert not memory.keep_freed_memory.__wrapped__()
    library.gnu_get_libc_version = None
    if sys.platform == "linux":
        assert memory.keep_freed_memory.__wrapped__()
        assert asked == [(-3, 32 << 20), (-1, 1 << 30)]
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory.__wrapped__()
