"""Checkpoints of one phase: tensors in safetensors, everything else as JSON in the same file's header.

One file a phase, replaced whole, so that a kill at any moment leaves either the old state or the new one.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from antibackdoor.errors import StorageError
from antibackdoor.files import atomic_write_bytes, pack_tensors, unpack_tensors
from antibackdoor.training.optimizers import Average, all_parameters
from antibackdoor.types import History

__all__ = ["Checkpoints", "PhaseState"]

_STEP = "step"
_ADAMW = (_STEP, "exp_avg", "exp_avg_sq")
_FORMAT = "antibackdoor checkpoint 2"


@dataclass(frozen=True, eq=False)
class PhaseState:
    """Where a phase stands after an epoch.

    Attributes:
        history: The epochs so far.
        done: The phase is over.
        tensors: Weights under "model/", SGD's momentum under "momentum/", AdamW's state under "adamw/", a moving
            average of the weights under "average/".
    """

    history: History
    done: bool
    tensors: dict[str, Tensor]

    @staticmethod
    def capture(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        history: History,
        *,
        done: bool,
        continued: bool = False,
        average: Average | None = None,
    ) -> PhaseState:
        """Copy the state of a network and its optimiser; all but the weights is of use until the training is over.

        Args:
            model: The network.
            optimizer: Its optimiser.
            history: The epochs so far.
            done: The phase is over.
            continued: Another phase goes on with its training.
            average: Of the weights, where one is kept.
        """
        tensors = {f"model/{k}": _plain(v) for k, v in model.state_dict().items()}
        if done and not continued:
            return PhaseState(history, done, tensors)
        for position, parameter in enumerate(all_parameters(optimizer)):
            kept = optimizer.state.get(parameter, {})
            if (momentum := kept.get("momentum_buffer")) is not None:
                tensors[f"momentum/{position}"] = _plain(momentum)
            tensors |= {f"adamw/{key}/{position}": _plain(kept[key]) for key in _ADAMW if key in kept}
        if average is not None:
            tensors |= {f"average/{name}": _plain(value) for name, value in average.tensors()}
        return PhaseState(history, done, tensors)

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, average: Average | None = None
    ) -> None:
        """Put the state back into a network, its optimiser and the average of its weights.

        Raises:
            StorageError: The weights are those of another network.
        """
        weights = {k.removeprefix("model/"): v for k, v in self.tensors.items() if k.startswith("model/")}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise StorageError(
                f"the checkpoint of phase {self.history.phase!r} is of another network: {error}"
            ) from None
        if optimizer is None:
            return
        for position, parameter in enumerate(all_parameters(optimizer)):
            momentum = self.tensors.get(f"momentum/{position}")
            if momentum is not None:
                # The layout must be the parameter's: a momentum in another layout changes the order of additions.
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
            for key in _ADAMW:
                value = self.tensors.get(f"adamw/{key}/{position}")
                if value is not None:
                    like = value.clone() if key == _STEP else torch.empty_like(parameter).copy_(value)
                    optimizer.state[parameter][key] = like
        if average is not None:
            mark = "average/"
            average.restore({k.removeprefix(mark): v for k, v in self.tensors.items() if k.startswith(mark)})


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; made at the first save.
        resume: Use what is there; otherwise every phase starts anew.
        writes: This process writes (one of several does).
    """

    def __init__(self, folder: Path, *, resume: bool, writes: bool = True) -> None:
        self._folder = folder
        self._resume = resume
        self._writes = writes

    def _path(self, phase: str) -> Path:
        return self._folder / f"{phase}.safetensors"

    def save(self, state: PhaseState) -> None:
        """Write the state of a phase, replacing the one before.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        if not self._writes:
            return
        history = state.history
        header = {
            "format": _FORMAT,
            "phase": history.phase,
            "epochs": str(len(history.seconds)),
            "done": json.dumps(state.done),
            "stopped": json.dumps(history.stopped),
        }
        tensors = dict(state.tensors)
        tensors["history/losses"] = torch.from_numpy(history.losses)
        tensors["history/accuracy"] = torch.from_numpy(history.accuracy)
        tensors["history/seconds"] = torch.from_numpy(history.seconds)
        path = self._path(history.phase)
        atomic_write_bytes(path, pack_tensors(tensors, header), what="the checkpoint ")

    def clear(self) -> None:
        """Delete the checkpoints; and the folder, if nothing else is in it."""
        for path in (*self._folder.glob("*.safetensors"), *self._folder.glob("*.partial")):
            path.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def load(self, phase: str) -> PhaseState | None:
        """Return the state of a phase, or None where there is none to resume.

        Raises:
            StorageError: The file is damaged or of another version, or cannot be read.
        """
        path = self._path(phase)
        if not self._resume or not path.exists():
            return None
        try:
            header, tensors = unpack_tensors(path.read_bytes())
            if header.get("format") != _FORMAT:
                raise StorageError(f"it is of format {header.get('format')!r}, not {_FORMAT!r}")
            history = History(
                phase=header["phase"],
                losses=tensors.pop("history/losses").numpy().astype(np.float32, copy=False),
                accuracy=tensors.pop("history/accuracy").numpy(),
                seconds=tensors.pop("history/seconds").numpy(),
                stopped=json.loads(header["stopped"]),
            )
            return PhaseState(history, bool(json.loads(header["done"])), tensors)
        except OSError as error:
            raise StorageError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
        except (KeyError, ValueError, StorageError) as error:
            raise StorageError(f"the checkpoint {path} is damaged ({error}); start again with --overwrite") from None


def _plain(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU in ordinary memory order, which safetensors asks for."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
