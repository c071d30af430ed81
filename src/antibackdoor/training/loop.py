"""The only training loop: every phase of every method goes through ``Trainer.fit``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.data.batches import Batches
from antibackdoor.errors import ConfigError, NonFiniteLossError, StorageError
from antibackdoor.ops.objectives import ce
from antibackdoor.progress import SILENT, Bar, Progress
from antibackdoor.seeds import Seeds
from antibackdoor.training.checkpoint import Checkpoints, PhaseState
from antibackdoor.training.epoch import Epoch, not_finite
from antibackdoor.training.inference import logits_of
from antibackdoor.training.optimizers import Average, all_parameters, optimizer_for
from antibackdoor.training.plan import Phase
from antibackdoor.training.runtime import Runtime
from antibackdoor.training.step import Objective, mean_loss, split_batches
from antibackdoor.types import History, ImageSet

__all__ = ["Trainer"]


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
        _refuse_small_batches(phase, self.runtime.world)
        self.runtime.place(model)
        trained = torch.ones(len(data), dtype=torch.bool) if subset is None else subset.clone()
        held_out = self._held_out if self._held_out is not None and len(self._held_out) == len(data) else None
        if held_out is not None:
            trained &= ~held_out
        optimizer, average = self._optimizer_of(model, phase)
        work = _Work(self, model, data, phase, objective, trained, held_out, optimizer, average)
        if not work.resume():
            work.train()
        if phase.part_of and phase.continued:
            self._unfinished[phase.part_of] = optimizer, average
        return work.found()

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

    def _batches_of(self, data: ImageSet) -> Batches:
        if self._batches is None or self._batches[0] is not data:
            self._batches = (data, Batches(data, self.runtime.device))
        return self._batches[1]


@dataclass(eq=False)
class _Work:
    """One phase under way: what it trains, on what, and how far it has come.

    Attributes:
        trainer: Whose phase it is.
        model: The network, on the run's device.
        data: N images.
        phase: See :meth:`Trainer.fit`.
        objective: See :meth:`Trainer.fit`.
        trained: bool (N,), the images that it trains on.
        held_out: bool (N,), images whose losses come from a forward pass, or None.
        optimizer: Of the network.
        average: Of its weights, or None.
        history: The epochs so far.
    """

    trainer: Trainer
    model: nn.Module
    data: ImageSet
    phase: Phase
    objective: Objective
    trained: Tensor
    held_out: Tensor | None
    optimizer: torch.optim.Optimizer
    average: Average | None
    history: History = field(init=False)

    def __post_init__(self) -> None:
        held_out = None if self.held_out is None else self.held_out.numpy()
        none = np.empty((0, len(self.data)), np.float32)
        self.history = History(self.phase.name, none, np.empty(0), np.empty(0), held_out=held_out)

    @cached_property
    def rows(self) -> Tensor:
        """int64 (M,), the images that it trains on."""
        return self.trained.nonzero().squeeze(1)

    @cached_property
    def sizes(self) -> list[int]:
        """Of the batches of an epoch."""
        return split_batches(len(self.rows), self.phase.plan.batch_size, self.trainer.runtime.world)

    @cached_property
    def seen(self) -> Tensor:
        """Bool (N,), the images that have a loss."""
        return self.trained if self.held_out is None else self.trained | self.held_out

    def found(self) -> History:
        """Return the epochs so far, with the number of updates in them."""
        return replace(self.history, updates=len(self.history.seconds) * len(self.sizes))

    def resume(self) -> bool:
        """Go on from the checkpoint, where there is one, and say whether the phase is over."""
        checkpoints = self.trainer._checkpoints
        state = checkpoints.load(self.phase.name) if checkpoints else None
        if state is None:
            return False
        _refuse_other_images(state.history, self.seen)
        state.restore(self.model, self.optimizer, self.average)
        self.history = replace(state.history, held_out=self.history.held_out)
        return state.done

    def train(self) -> None:
        """Train the epochs that are left, each kept in the checkpoint as it ends."""
        trainer, phase = self.trainer, self.phase
        net = trainer.runtime.parallel(self.model)
        compiled = trainer.runtime.compiled(net, len(self.rows) * (phase.end - phase.first))
        begun = phase.first + len(self.history.seconds)
        last_good = self._state(done=False)
        with trainer._progress.bar(phase.name, (phase.end - begun) * len(self.sizes), "batches") as bar:
            for number in range(begun, phase.end):
                started = time.perf_counter()
                losses, accuracy = self._epoch(net, compiled, number, bar)
                problem = not_finite(self.model, self.data, losses[self.rows], trainer.runtime)
                if problem:
                    last_good.restore(self.model, self.optimizer, self.average)
                    self._stop(f"phase {phase.name!r}, epoch {number + 1}: {problem}")
                    break
                losses[~self.seen] = float("nan")
                self.history = _extended(self.history, losses, accuracy, time.perf_counter() - started)
                last_good = self._state(done=number + 1 == phase.end)
                if trainer._checkpoints:
                    trainer._checkpoints.save(last_good)
                self._tell(bar, number, float(losses[self.rows].mean()), accuracy)
        if self.history.stopped and trainer._checkpoints:
            trainer._checkpoints.save(self._state(done=True))

    def _epoch(
        self, net: nn.Module, compiled: nn.Module | Callable[..., Tensor], number: int, bar: Bar
    ) -> tuple[Tensor, float]:
        """Train one epoch; returns the loss of each image, CPU float32 (N,), held-out ones too, and the accuracy."""
        trainer, runtime = self.trainer, self.trainer.runtime
        trained = (net, compiled, self.optimizer, self.average)
        epoch = Epoch(runtime, trainer.stream, *trained, self.phase, self.objective, number)
        losses, accuracy = epoch.run(trainer._batches_of(self.data), self.rows, self.sizes, len(self.data), bar)
        if self.average is not None and number + 1 == self.phase.plan.epochs:
            self.average.install()
        runtime.agree(self.model)
        if self.held_out is not None and bool(self.held_out.any()):
            watched = self.held_out.nonzero().squeeze(1)
            losses[watched] = ce(logits_of(self.model, self.data, runtime, index=watched), self.data.labels[watched])
        return losses, accuracy

    def _state(self, *, done: bool) -> PhaseState:
        continued, average = self.phase.continued, self.average
        return PhaseState.capture(
            self.model, self.optimizer, self.history, done=done, continued=continued, average=average
        )

    def _stop(self, message: str) -> None:
        """End the phase early, or raise NonFiniteLossError where it does not allow that."""
        if not self.phase.stop_on_nonfinite:
            raise NonFiniteLossError(f"{message}; try a lower learning rate (train.lr, or the defence's own)")
        self.history = replace(self.history, stopped=message)

    def _tell(self, bar: Bar, number: int, loss: float, accuracy: float) -> None:
        epochs, track = self.phase.plan.epochs, self.trainer._track
        bar.advance(0, f"epoch {number + 1}/{epochs}, loss {loss:.3f}, accuracy {100 * accuracy:.1f} %")
        if track:
            track(self.phase.name, number + 1, loss, accuracy)


def _refuse_small_batches(phase: Phase, world: int) -> None:
    if phase.plan.batch_size < 2 * world:
        raise ConfigError(
            f"batch_size: {phase.plan.batch_size} in phase {phase.name!r} leaves some of the {world} processes "
            f"fewer than 2 images a batch; it must be at least {2 * world}, or start fewer processes"
        )


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
