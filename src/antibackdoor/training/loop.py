"""The only training loop: every phase of every method goes through ``Trainer.fit``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.batches import Batches
from antibackdoor.errors import ConfigError, NonFiniteLossError, StorageError
from antibackdoor.ops.augment import augment
from antibackdoor.ops.objectives import ce
from antibackdoor.progress import SILENT, Bar, Progress
from antibackdoor.seeds import Seeds
from antibackdoor.training.checkpoint import Checkpoints, PhaseState
from antibackdoor.training.inference import logits_of
from antibackdoor.training.optimizers import Average, all_parameters, optimizer_for, set_rate
from antibackdoor.training.plan import Phase
from antibackdoor.training.runtime import Runtime
from antibackdoor.types import History, ImageSet

__all__ = ["Fit", "Objective", "Step", "Trainer", "mean_loss", "split_batches"]

_LOOKED_AT = 64  # images that a network has to give finite predictions for after an epoch
_STATISTICS = ("running_mean", "running_var")  # of batch normalisation


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass, as an objective sees it.

    Attributes:
        images: float (B, C, H, W) in [0, 1], augmented.
        labels: int64 (B,).
        index: int64 (B,), rows of the set.
        logits: float (B, K), with gradient.
        losses: float32 (B,), cross-entropy of each image, with gradient.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    logits: Tensor
    losses: Tensor


Objective: TypeAlias = Callable[[Step], Tensor]


def mean_loss(step: Step) -> Tensor:
    """The objective of ordinary training: the mean cross-entropy of the batch."""
    return step.losses.mean()


class Fit(Protocol):
    """How methods call the training loop, and where it computes; a :class:`Trainer` is one."""

    @property
    def runtime(self) -> Runtime:
        """Device, precision, processes; forward passes of a method's own run there too."""

    def __call__(
        self,
        model: nn.Module,
        data: ImageSet,
        phase: Phase,
        *,
        objective: Objective = mean_loss,
        subset: Tensor | None = None,
    ) -> History:
        """Train ``model`` in place; see :meth:`Trainer.fit`."""


def split_batches(count: int, batch_size: int, world: int = 1) -> list[int]:
    """Return the sizes of the batches of one epoch: all of them full, but for the last.

    A last batch too small for its batch-normalisation statistics to mean much (under an eighth of a full one, or under
    two images a process) joins the one before it.

    Args:
        count: Images in the epoch.
        batch_size: Images in a full batch.
        world: Processes that share each batch.
    """
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full
    if rest and full and rest < max(2 * world, batch_size // 8):
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes


class Trainer:
    """Trains networks, with everything that does not change between the phases of a run.

    Args:
        runtime: Device, precision, processes.
        seeds: Source of the streams "shuffle", "augment" and "dropout" of every phase and epoch.
        held_out: bool (N,), rows that no phase trains on; their losses are recorded by a forward pass.
        checkpoints: Where the state goes after every epoch, and comes from on resuming; None keeps none.
        progress: Shows the work.
        track: Told the phase, the number of the epoch from 1 on, mean loss in nats and accuracy after every epoch.
    """

    def __init__(
        self,
        runtime: Runtime,
        seeds: Seeds,
        *,
        held_out: Tensor | None = None,
        checkpoints: Checkpoints | None = None,
        progress: Progress = SILENT,
        track: Callable[[str, int, float, float], object] | None = None,
    ) -> None:
        self._runtime = runtime
        self._seeds = seeds
        self._held_out = held_out
        self._checkpoints = checkpoints
        self._progress = progress
        self._track = track
        self._batches: tuple[ImageSet, Batches] | None = None
        self._unfinished: dict[str, tuple[torch.optim.Optimizer, Average | None]] = {}

    @property
    def runtime(self) -> Runtime:
        """Device, precision, processes."""
        return self._runtime

    def __call__(
        self,
        model: nn.Module,
        data: ImageSet,
        phase: Phase,
        *,
        objective: Objective = mean_loss,
        subset: Tensor | None = None,
    ) -> History:
        """Train as :meth:`fit` does, overridden or not."""
        return self.fit(model, data, phase, objective=objective, subset=subset)

    def fit(
        self,
        model: nn.Module,
        data: ImageSet,
        phase: Phase,
        *,
        objective: Objective = mean_loss,
        subset: Tensor | None = None,
    ) -> History:
        """Train ``model`` in place and return what was seen.

        Args:
            model: Takes float (B, C, H, W) in [0, 1], gives logits (B, K); moved to the run's device.
            data: The images and observed labels.
            phase: Name, plan and bounds of this training. A phase of that name that was finished before a resume is
                not trained again: its weights and history come from the checkpoint.
            objective: Step -> scalar to minimise.
            subset: bool (N,), rows to train on; all by default. Held-out rows are never trained on.

        Returns:
            Per-sample losses of every epoch, recorded while training, at no extra pass.

        Raises:
            ConfigError: The batches are too small to be shared by the processes.
            StorageError: The checkpoint to resume is of other images or another network.
            NonFiniteLossError: A loss became infinite or not a number and the phase does not stop on that; the
                network holds the weights of the last good epoch.
        """
        runtime, plan = self.runtime, phase.plan
        if plan.batch_size < 2 * runtime.world:
            raise ConfigError(
                f"batch_size: {plan.batch_size} in phase {phase.name!r} leaves some of the {runtime.world} processes "
                f"fewer than 2 images a batch; it must be at least {2 * runtime.world}, or start fewer processes"
            )
        runtime.place(model)
        trained = torch.ones(len(data), dtype=torch.bool) if subset is None else subset.clone()
        watched = torch.empty(0, dtype=torch.int64)
        history = History(phase.name, np.empty((0, len(data)), np.float32), np.empty(0), np.empty(0))
        if self._held_out is not None and len(self._held_out) == len(data):
            trained &= ~self._held_out
            watched = self._held_out.nonzero().squeeze(1)
            history = replace(history, held_out=self._held_out.numpy())
        rows = trained.nonzero().squeeze(1)
        sizes = split_batches(len(rows), plan.batch_size, runtime.world)
        optimizer, average = self._optimizer_of(model, phase)
        state = self._checkpoints.load(phase.name) if self._checkpoints else None
        if state is not None:
            _refuse_other_images(state.history, _union(trained, watched))
            state.restore(model, optimizer, average)
            history = replace(state.history, held_out=history.held_out)
            if state.done:
                self._leave(phase, optimizer, average)
                return _counted(history, sizes)
        net = runtime.parallel(model)
        compiled = runtime.compiled(net, len(rows) * (phase.end - phase.first))
        done_epochs = phase.first + len(history.seconds)
        capture = partial(PhaseState.capture, model, optimizer, continued=phase.continued, average=average)
        last_good = capture(history, done=False)
        with self._progress.bar(phase.name, (phase.end - done_epochs) * len(sizes), "batches") as bar:
            for epoch in range(done_epochs, phase.end):
                started = time.perf_counter()
                worker = _EpochWorker(self, net, compiled, optimizer, average, phase, objective, epoch)
                losses, accuracy = worker.run(self._batches_of(data), rows, sizes, len(data), bar)
                if average is not None and epoch + 1 == plan.epochs:
                    average.install()
                runtime.agree(model)
                if len(watched):
                    losses[watched] = self._watch(model, data, watched)
                problem = _not_finite(model, losses[rows])
                if not problem:  # no loss tells of the last update
                    some = torch.arange(0, len(data), -(-len(data) // _LOOKED_AT))
                    last = logits_of(model, data, runtime, index=some)
                    problem = None if bool(last.isfinite().all()) else "its predictions are infinite or not a number"
                if problem:
                    last_good.restore(model, optimizer, average)
                    message = f"phase {phase.name!r}, epoch {epoch + 1}: {problem}"
                    if not phase.stop_on_nonfinite:
                        raise NonFiniteLossError(
                            f"{message}; try a lower learning rate (train.lr, or the defence's own)"
                        )
                    history = replace(history, stopped=message)
                    break
                losses[~_union(trained, watched)] = float("nan")
                history = _extended(history, losses, accuracy, time.perf_counter() - started)
                last_good = capture(history, done=epoch + 1 == phase.end)
                if self._checkpoints:
                    self._checkpoints.save(last_good)
                loss = float(losses[rows].mean())
                bar.advance(0, f"epoch {epoch + 1}/{plan.epochs}, loss {loss:.3f}, accuracy {100 * accuracy:.1f} %")
                if self._track:
                    self._track(phase.name, epoch + 1, loss, accuracy)
        if history.stopped and self._checkpoints:
            self._checkpoints.save(capture(history, done=True))
        self._leave(phase, optimizer, average)
        return _counted(history, sizes)

    def stream(self, name: str, phase: Phase, epoch: int) -> Seeds:
        """Return the seeds of one epoch: no state to save, so a resumed epoch is the same as an uninterrupted one."""
        return self._seeds.child(f"{phase.part_of or phase.name}/{epoch}/{name}")

    def _optimizer_of(self, model: nn.Module, phase: Phase) -> tuple[torch.optim.Optimizer, Average | None]:
        """Return optimiser and average of the part before, with their state, or new ones."""
        plan = phase.plan
        before = self._unfinished.pop(phase.part_of, None) if phase.part_of and phase.first else None
        if before is not None and {*all_parameters(before[0])} == {*model.parameters()}:
            return before
        fused = True if self.runtime.device.type == "cuda" else None  # there, one kernel in place of several
        return optimizer_for(model, plan, fused=fused), Average(model, plan.ema) if plan.ema else None

    def _leave(self, phase: Phase, optimizer: torch.optim.Optimizer, average: Average | None) -> None:
        if phase.part_of and phase.continued:
            self._unfinished[phase.part_of] = optimizer, average

    def _batches_of(self, data: ImageSet) -> Batches:
        if self._batches is None or self._batches[0] is not data:
            self._batches = (data, Batches(data, self.runtime.device))
        return self._batches[1]

    def _watch(self, model: nn.Module, data: ImageSet, rows: Tensor) -> Tensor:
        logits = logits_of(model, data, self.runtime, index=rows)
        return ce(logits, data.labels[rows])


class _EpochWorker:
    """One epoch of one phase on one process."""

    def __init__(
        self,
        trainer: Trainer,
        net: nn.Module,
        compiled: nn.Module | Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        phase: Phase,
        objective: Objective,
        epoch: int,
    ) -> None:
        self._runtime = trainer.runtime
        self._net, self._compiled = net, compiled
        self._optimizer, self._average = optimizer, average
        self._phase = phase
        self._objective = objective
        self._epoch = epoch
        order = epoch if phase.reshuffle else 0
        self._shuffle = trainer.stream("shuffle", phase, order).generator("all")
        self._augment = trainer.stream("augment", phase, epoch).generator(
            f"rank {self._runtime.rank}", self._runtime.device
        )
        self._dropout = trainer.stream("dropout", phase, epoch).derive(f"rank {self._runtime.rank}")

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


def _counted(history: History, sizes: list[int]) -> History:
    return replace(history, updates=len(history.seconds) * len(sizes))


def _extended(history: History, losses: Tensor, accuracy: float, seconds: float) -> History:
    return replace(
        history,
        losses=np.concatenate([history.losses, losses.numpy()[None]]),
        accuracy=np.append(history.accuracy, accuracy),
        seconds=np.append(history.seconds, seconds),
    )


def _refuse_other_images(history: History, seen: Tensor) -> None:
    """Raise StorageError unless a checkpoint's history is of this set and of these of its images, bool (N,)."""
    count = history.losses.shape[1]
    if count != len(seen):
        raise StorageError(
            f"the checkpoint of phase {history.phase!r} is of {count:,} images, but there are {len(seen):,}; start "
            "again with --overwrite"
        )
    if len(history.losses) and not np.array_equal(np.isfinite(history.losses[-1]), seen.numpy()):
        raise StorageError(
            f"the checkpoint of phase {history.phase!r} was trained on other images of the set than it would be now, "
            "as happens with another number of threads or another device; resume as it was started, or start again "
            "with --overwrite"
        )


def _union(trained: Tensor, watched: Tensor) -> Tensor:
    seen = trained.clone()
    seen[watched] = True
    return seen


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
