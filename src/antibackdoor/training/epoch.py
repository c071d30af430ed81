"""One epoch of training: batches, forward passes, updates; and whether a network is still finite after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from antibackdoor.data.batches import Batches
from antibackdoor.ops.augment import augment
from antibackdoor.ops.objectives import ce
from antibackdoor.progress import Bar
from antibackdoor.seeds import Seeds
from antibackdoor.training.inference import logits_of
from antibackdoor.training.optimizers import Average, set_rate
from antibackdoor.training.plan import Phase
from antibackdoor.training.runtime import Runtime
from antibackdoor.training.step import Objective, Step
from antibackdoor.types import ImageSet

__all__ = ["Epoch", "not_finite"]

_LOOKED_AT = 64  # images that a network has to give finite predictions for after an epoch
_STATISTICS = ("running_mean", "running_var")  # of batch normalisation


class Epoch:
    """One epoch of one phase on one process.

    Args:
        runtime: Device, precision, processes.
        stream: Seeds of a stream ("shuffle", "augment", "dropout") in a phase and an epoch of it.
        net: The network, shared by the processes.
        compiled: The same, as full batches go through it.
        optimizer: Of its parameters.
        average: Of its weights, or None.
        phase: What the epoch is of.
        objective: Step -> scalar to minimise.
        epoch: Its number, from 0.
    """

    def __init__(
        self,
        runtime: Runtime,
        stream: Callable[[str, Phase, int], Seeds],
        net: nn.Module,
        compiled: nn.Module | Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        phase: Phase,
        objective: Objective,
        epoch: int,
    ) -> None:
        self._runtime = runtime
        self._net, self._compiled = net, compiled
        self._optimizer, self._average = optimizer, average
        self._phase = phase
        self._objective = objective
        self._epoch = epoch
        order = epoch if phase.reshuffle else 0
        self._shuffle = stream("shuffle", phase, order).generator("all")
        self._augment = stream("augment", phase, epoch).generator(f"rank {runtime.rank}", runtime.device)
        self._dropout = stream("dropout", phase, epoch).derive(f"rank {runtime.rank}")

    def run(self, batches: Batches, rows: Tensor, sizes: list[int], total: int, bar: Bar) -> tuple[Tensor, float]:
        """Train on every row once; returns the loss of each image (CPU float32 (N,)) and the accuracy."""
        runtime = self._runtime
        order = rows[torch.randperm(len(rows), generator=self._shuffle)].to(runtime.device)
        losses = torch.zeros(total, device=runtime.device)
        correct = torch.zeros((), device=runtime.device)
        self._net.train(not self._phase.freeze_norm)
        devices = [runtime.device] if runtime.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._dropout)
            for number, index in self._share(order, sizes):
                images, labels = batches.take(index)
                step = self._step(images, labels, index, number, sizes)
                losses[index] = step.losses.detach()
                correct += (step.logits.detach().argmax(1) == labels).sum()
                bar.advance()
        losses, correct = runtime.sum(losses), runtime.sum(correct)
        return losses.cpu(), float(correct) / max(1, len(rows))

    def _share(self, order: Tensor, sizes: list[int]) -> Iterator[tuple[int, Tensor]]:
        for number, batch in enumerate(order.split(sizes)):
            yield number, batch[self._runtime.rank :: self._runtime.world]

    def _step(self, images: Tensor, labels: Tensor, index: Tensor, number: int, sizes: list[int]) -> Step:
        plan, runtime = self._phase.plan, self._runtime
        images = augment(images, plan.augment, self._augment)
        pixels = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
        # Only full batches run compiled: a batch of another size would be compiled once more for a single use.
        net = self._compiled if sizes[number] == plan.batch_size else self._net
        # Before the forward pass: gradients of the last step may lie in memory that CUDA graphs write again.
        self._optimizer.zero_grad(set_to_none=True)
        runtime.begin_step()
        with runtime.autocast():
            logits = net(pixels)
        step = Step(pixels, labels, index, logits, ce(logits, labels))
        # Processes average their gradients; the factor makes that the mean over the batch when shares are uneven.
        weight = len(index) * runtime.world / sizes[number]
        (self._objective(step) * weight).backward()
        if self._phase.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._net.parameters(), self._phase.clip_norm)
        progress = (self._epoch * len(sizes) + number + 1) / (plan.epochs * len(sizes))
        set_rate(self._optimizer, plan.rate_at(progress - 0.5 / (plan.epochs * len(sizes))))
        self._optimizer.step()
        if self._average is not None:
            self._average.update()
        return step


def not_finite(model: nn.Module, data: ImageSet, losses: Tensor, runtime: Runtime) -> str | None:
    """Say what of a network is infinite or not a number after an epoch, or None.

    Args:
        model: The network.
        data: The images; some of them are predicted, since no loss tells of the last update.
        losses: float32 (M,), of the images trained on.
        runtime: Where it computes.
    """
    problem = _not_finite(model, losses)
    if problem:
        return problem
    some = torch.arange(0, len(data), -(-len(data) // _LOOKED_AT))
    last = logits_of(model, data, runtime, index=some)
    return None if bool(last.isfinite().all()) else "its predictions are infinite or not a number"


def _not_finite(model: nn.Module, losses: Tensor) -> str | None:
    if not bool(torch.isfinite(losses).all()):
        return "the loss is infinite or not a number"
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        return "a weight is infinite or not a number"
    # In training mode a batch is normalised by its own: the loss does not show them.
    kept = (value for name, value in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS)
    if not all(bool(torch.isfinite(value).all()) for value in kept):
        return "a statistic of a normalisation is infinite or not a number"
    return None
