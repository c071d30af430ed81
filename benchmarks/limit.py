"""How near the training loop comes to the convolutions alone: their throughput at exactly the network's shapes.

Usage: python benchmarks/limit.py [--model wrn-16-1] [--batch-size 128] [--threads 1] [--json FILE]

Every round runs, one after the other, all convolutions of a training step (forward, gradient of the input, gradient of
the weights; the first layer needs no gradient of its input) in the precision and memory format of the loop, with
weights and activations prepared, and the training loop itself (``Trainer.fit``, crop and flip) on as many batches. The
first is the limit: nothing but convolutions, through the same library. Figures are medians over the rounds' own ratios.
Seconds are those that the processors spent on this process, which other work on the machine disturbs less than the
clock on the wall. For a CPU.

``--ideas`` runs the loop with each named change as well, in every round: seconds as it is / seconds with the change.
What glibc does with freed memory is a matter of the process: GLIBC_TUNABLES=glibc.malloc.perturb=0 leaves it be.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import commit, made_by, write
from speed import synthetic
from torch import Tensor, nn
from torch.nn import functional

from antibackdoor.models import blocks, builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Phase, Runtime, Trainer, TrainPlan
from antibackdoor.training.memory import keep_freed_memory
from antibackdoor.types import History, ImageSet

# Operations of the profile by what they are; the first word that an operation's name contains counts.
KINDS = {
    "convolution": ("convolution", "conv2d", "mkldnn_conv"),
    "normalisation": ("batch_norm",),
    "relu": ("relu", "threshold"),
    "sum of branches": ("aten::add", "AddBackward"),
    "casts and copies": ("copy_", "_to_copy", "contiguous", "clone"),
    "optimiser": ("Optimizer", "_foreach", "_fused", "addcmul", "aten::mul_"),
    "augmentation and gathering": ("index", "pad", "flip", "where", "randint", "cat"),
}


@dataclass(frozen=True, eq=False)
class Convolution:
    """One convolution of the network, with tensors of its shapes.

    Attributes:
        inputs: (B, C, H, W).
        weight: (F, C, kh, kw).
        gradient: (B, F, H', W'), of its output.
        stride: Of both directions.
        padding: Of both directions.
        first: It takes the image, which needs no gradient.
    """

    inputs: Tensor
    weight: Tensor
    gradient: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    first: bool

    @property
    def flops(self) -> int:
        """Floating-point operations of forward and backward, two for a multiplication and its addition."""
        macs = self.gradient.numel() * self.weight[0].numel()
        return 2 * macs * (2 if self.first else 3)

    def run(self) -> None:
        """Compute its output and its gradients."""
        functional.conv2d(self.inputs, self.weight, None, self.stride, self.padding)
        wanted = [not self.first, True, False]
        torch.ops.aten.convolution_backward(
            self.gradient, self.inputs, self.weight, None, self.stride, self.padding, (1, 1), False, (0, 0), 1, wanted
        )


def convolutions_of(model: nn.Module, shape: tuple[int, int, int, int], runtime: Runtime) -> list[Convolution]:
    """Return every convolution of a network as it sees a batch of this shape (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    found: list[Convolution] = []

    def drawn(size: Sequence[int]) -> Tensor:
        values = torch.randn(tuple(size), generator=generator).to(runtime.device, runtime.dtype)
        return values.contiguous(memory_format=torch.channels_last)

    def note(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tensors = (drawn(inputs[0].shape), drawn(layer.weight.shape), drawn(output.shape))
        padding = tuple(int(side) for side in layer.padding)
        found.append(Convolution(*tensors, layer.stride, padding, first=not found))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        model(torch.zeros(shape, device=runtime.device))
    for hook in hooks:
        hook.remove()
    return found


@contextlib.contextmanager
def optimiser(**options: bool) -> Iterator[None]:
    """Train with another implementation of SGD."""
    before = torch.optim.SGD.__init__
    torch.optim.SGD.__init__ = lambda self, *args, **rest: before(self, *args, **{**rest, **options})  # type: ignore
    try:
        yield
    finally:
        torch.optim.SGD.__init__ = before  # type: ignore[method-assign]


@contextlib.contextmanager
def in_place() -> Iterator[None]:
    """Write ReLU and the sum of branches over their input, which no gradient needs."""
    before = blocks.PreActBlock.forward

    def forward(self: blocks.PreActBlock, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x), inplace=True)
        kept = x if self.shortcut is None else self.shortcut(active)
        inner: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(active)), inplace=True))
        return inner.add_(kept)

    blocks.PreActBlock.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        blocks.PreActBlock.forward = before  # type: ignore[method-assign]


IDEAS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "fused": lambda: optimiser(fused=True),
    "foreach": lambda: optimiser(foreach=True),
    "in-place": in_place,
    "compiled": contextlib.nullcontext,
}


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the seconds of processor time, of all threads, that ``work`` takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


class Loop:
    """The training loop on so many batches of one set.

    Args:
        data: The images.
        runtime: Device and precision.
        model: Name of the network.
        batch_size: Images in a batch.
    """

    def __init__(self, data: ImageSet, runtime: Runtime, model: str, batch_size: int) -> None:
        self._data, self._runtime = data, runtime
        self._build, _ = builder_from(model, data)
        self._plan = TrainPlan(1, batch_size, 0.1)

    def prepared(self, *, compiled: bool = False) -> Callable[[], History]:
        """Return the training of a new network, which is not part of what is timed."""
        model = self._runtime.place(self._build(Seeds(0).generator("init")))
        runtime = dataclasses.replace(self._runtime, compile_mode="on" if compiled else "off")
        trainer, phase = Trainer(runtime, Seeds(0)), Phase("train", self._plan)
        return lambda: trainer.fit(model, self._data, phase)

    def convolutions(self) -> list[Convolution]:
        """Return the convolutions of one step."""
        model = self._runtime.place(self._build(Seeds(0).generator("init")))
        return convolutions_of(model, (self._plan.batch_size, *self._data.shape), self._runtime)

    def shares(self) -> dict[str, float]:
        """Return which share of the processor's time goes where, by a profile of one training."""
        training = self.prepared()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            training()
        spent: Counter[str] = Counter()
        for event in seen.key_averages():
            spent[kind_of(event.key)] += event.self_cpu_time_total
        total = sum(spent.values())
        return {name: round(value / total, 4) for name, value in spent.most_common()}


def kind_of(operation: str) -> str:
    """Return what an operation of the profile belongs to: a key of ``KINDS``, or "rest"."""
    return next((kind for kind, words in KINDS.items() if any(word in operation for word in words)), "rest")


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Measure as the command line asks; returns what is written."""
    runtime = Runtime.create("cpu", args.precision, "off")
    loop = Loop(synthetic(args.batches * args.batch_size, 0), runtime, args.model, args.batch_size)
    convolutions = loop.convolutions()

    def limit() -> None:
        for _ in range(args.batches):
            for convolution in convolutions:
                convolution.run()

    ways = {idea: loop.prepared(compiled=idea == "compiled") for idea in (None, *args.ideas)}

    def trained(idea: str | None) -> float:
        training = ways[idea]
        with IDEAS[idea]() if idea else contextlib.nullcontext():
            return processor_seconds(training)

    limit()
    # Warm: what is laid out or compiled once is no part of an epoch.
    first = {idea or "loop": trained(idea) for idea in ways}
    rounds: dict[str, list[float]] = {"limit": [], "loop": [], **{idea: [] for idea in args.ideas}}
    for _ in range(args.rounds):
        rounds["limit"].append(processor_seconds(limit))
        rounds["loop"].append(trained(None))
        for idea in args.ideas:
            rounds[idea].append(trained(idea))
    flops = args.batches * sum(convolution.flops for convolution in convolutions)
    near = [first / second for first, second in zip(rounds["limit"], rounds["loop"], strict=True)]
    gains = {
        idea: [first / second for first, second in zip(rounds["loop"], rounds[idea], strict=True)]
        for idea in args.ideas
    }
    return {
        "percent_of_limit": round(100 * statistics.median(near), 1),
        "percent_of_limit_by_round": [round(100 * value, 1) for value in near],
        "limit_gflops": round(flops / statistics.median(rounds["limit"]) / 1e9, 1),
        "loop_gflops": round(flops / statistics.median(rounds["loop"]) / 1e9, 1),
        "images_per_second": round(args.batches * args.batch_size / statistics.median(rounds["loop"])),
        "ideas": {idea: round(statistics.median(ratios), 3) for idea, ratios in gains.items()},
        "ideas_by_round": {idea: [round(ratio, 3) for ratio in ratios] for idea, ratios in gains.items()},
        "keeps_freed_memory": keep_freed_memory(),
        "shares": loop.shares(),
        "seconds": rounds,
        "first_seconds": first,
        "flops": flops,
        "model": args.model,
        "batch_size": args.batch_size,
        "batches": args.batches,
        "commit": commit(),
        **made_by("cpu"),
        "precision": str(runtime.dtype).removeprefix("torch."),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="wrn-16-1")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=8, help="in one timing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--ideas", nargs="+", choices=sorted(IDEAS), default=[], help="changes of the loop to try")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args(argv)
    if min(args.batch_size - 1, args.batches, args.rounds, args.threads) < 1:
        parser.error("--batches, --rounds and --threads must be at least 1, --batch-size 2")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    result = measured(args)
    device = result["device"]
    print(f"{device['name']}, {args.threads} threads, {device['reason']}; {args.model}, batch {args.batch_size}")
    print(f"convolutions alone: {result['limit_gflops']} GFLOP/s, forward and backward")
    print(
        f"the loop: {result['loop_gflops']} GFLOP/s, {result['percent_of_limit']} % of that (median of {args.rounds})"
    )
    for idea, gain in result["ideas"].items():
        print(f"{idea}: {gain:.3f} times as fast (by round {result['ideas_by_round'][idea]})")
    for kind, share in result["shares"].items():
        print(f"{100 * share:5.1f} %  {kind}")
    if args.json:
        write(args.json, result)


if __name__ == "__main__":
    main()
