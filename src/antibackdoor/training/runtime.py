"""Where and in which precision everything is computed, and why; processes through accelerate."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn

from antibackdoor.errors import DeviceError
from antibackdoor.training.memory import keep_freed_memory
from antibackdoor.types import Json

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["CompileMode", "Precision", "Runtime"]

Precision = Literal["auto", "bf16", "fp32"]
CompileMode = Literal["auto", "off", "on", "graphs"]
T = TypeVar("T")
_AVERAGED = frozenset({"running_mean", "running_var"})
# How long processes wait for the first one, which looks at a large set by itself.
_PATIENCE = timedelta(hours=12)


def _card(given: int | None, local_rank: int, world: int) -> int:
    """Return the index of this process's card: the one that was given, else that of its rank on this machine."""
    if given is None:
        return local_rank
    if world > 1 and given != local_rank:
        raise DeviceError(
            f"device 'cuda:{given}' is one card, but {world} processes work together, each on a card of its own; "
            "use --device cuda"
        )
    return given


def _resolve_device(name: str) -> torch.device:
    local_rank, world = (int(os.environ.get(key, other)) for key, other in (("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", _card(None, local_rank, world))
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is not a device name; use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"device {name!r} is not there: this machine shows {count} CUDA devices; use --device auto"
            )
        return torch.device("cuda", _card(device.index, local_rank, world))
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' is not there: use --device auto")
    if device.type not in {"cpu", "mps"}:
        raise DeviceError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:1 or mps")
    return device


def _resolve_precision(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    if precision == "fp32":
        return torch.float32, "float32, as asked"
    if precision == "bf16":
        return torch.bfloat16, "bfloat16, as asked"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] >= 8:
            return torch.bfloat16, "bfloat16 autocast: the GPU is Ampere or later"
        return torch.float32, "float32: the GPU is older than Ampere"
    if device.type == "cpu":
        capabilities = torch.backends.cpu.get_cpu_capability()
        # PyTorch names the vector level, not the bf16 instructions, so the processor's own flags are read too.
        flags = _cpu_flags()
        for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")):
            if flag in flags and "AVX512" in capabilities:
                return torch.bfloat16, f"bfloat16 autocast: the CPU has {name}"
        return torch.float32, "float32: the CPU has no bfloat16 instructions"
    return torch.float32, f"float32: the default on {device.type}"


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


@dataclass(frozen=True, eq=False)
class Runtime:
    """The device, the precision and the processes of one run.

    Attributes:
        device: Where tensors live.
        dtype: The type that forward passes are autocast to; float32 means no autocast.
        reason: Why that type, in words.
        compile_mode: Whether ``torch.compile`` is used; "auto" compiles on CUDA when a phase is long enough to pay,
            "graphs" replays CUDA graphs as well, which saves the launches of small kernels (on a CPU it is "on").
        accelerator: The accelerate object when several processes work together, else None.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str
    compile_mode: CompileMode = "auto"
    accelerator: Accelerator | None = None

    @staticmethod
    def create(device: str = "auto", precision: Precision = "auto", compile_mode: CompileMode = "auto") -> Runtime:
        """Choose device and precision, and join the other processes that a launcher started.

        On GPUs the launcher is ``accelerate launch -m antibackdoor ...``; on a CPU it is ``torchrun --nproc_per_node 2
        -m antibackdoor ...``, since ``accelerate launch --cpu`` starts one process, whatever their number.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1" or "mps". Of several processes each takes a card of its own, so an
                index is for one process alone.
            precision: "auto", "bf16" or "fp32".
            compile_mode: "auto", "on", "off" or "graphs".

        Raises:
            DeviceError: No such device here, or one card for several processes.
        """
        chosen = _resolve_device(device)
        dtype, reason = _resolve_precision(precision, chosen)
        if chosen.type == "cpu":
            keep_freed_memory()
        accelerator = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator, InitProcessGroupKwargs

            patient = InitProcessGroupKwargs(timeout=_PATIENCE)
            accelerator = Accelerator(cpu=chosen.type == "cpu", kwargs_handlers=[patient])
            chosen = accelerator.device
        return Runtime(chosen, dtype, reason, compile_mode, accelerator)

    @property
    def rank(self) -> int:
        """Index of this process, 0 for the one that writes files."""
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """Number of processes."""
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    def autocast(self) -> torch.autocast:
        """Return the context of forward passes."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def place(self, model: nn.Module) -> nn.Module:
        """Move the network to the device, convolutions in channels-last memory; returns the same object."""
        return model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def parallel(self, model: nn.Module) -> nn.Module:
        """Return the network as it is to be called in training: wrapped when several processes train it."""
        if self.accelerator is None:
            return model
        wrapped: nn.Module = self.accelerator.prepare_model(model)
        return wrapped

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.accelerator is None:
            return tensor
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def agree(self, model: nn.Module) -> None:
        """Give every process the mean of the batch-normalisation statistics; other buffers are left alone."""
        if self.accelerator is None:
            return
        for name, buffer in model.named_buffers():
            if name.rpartition(".")[2] in _AVERAGED:
                buffer.copy_(self.sum(buffer) / self.world)

    def first(self, value: T) -> T:
        """Return what the first process has, to every process; what the others have is lost.

        A decision that depends on sums must be taken once: two processes may round them differently.
        """
        if self.accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        shared: list[T] = broadcast_object_list([value])
        return shared[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def compiles(self, images: int) -> bool:
        """Return whether a phase that sees ``images`` images in all is worth compiling for."""
        if self.compile_mode == "auto":
            # Compilation took 10 to 30 s and a CPU network of this size ran slower with it (docs/log.md).
            return self.device.type == "cuda" and images >= 1_000_000
        return self.compile_mode != "off"

    def compiled(self, net: nn.Module, images: int) -> nn.Module | Callable[..., Tensor]:
        """Return what is called for a full batch in training: the network, or what is compiled of it.

        Args:
            net: The network as :meth:`parallel` gives it.
            images: Images that the phase sees in all.
        """
        if not self.compiles(images):
            return net
        graphs = self.compile_mode == "graphs" and self.device.type == "cuda"
        return torch.compile(net, mode="reduce-overhead" if graphs else None)

    def begin_step(self) -> None:
        """Say that a step of training begins: what CUDA graphs gave in the last one may be overwritten."""
        if self.compile_mode == "graphs" and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()

    def describe(self) -> dict[str, Json]:
        """Return what a record says about the device."""
        name = "cpu"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "cpu":
            name = _cpu_name()
        return {
            "type": self.device.type,
            "name": name,
            "precision": str(self.dtype).removeprefix("torch."),
            "reason": self.reason,
            "threads": torch.get_num_threads(),
            "processes": self.world,
            "compile": self.compile_mode,
        }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
