"""Losses, accuracies and figures of a run as it goes, for TensorBoard, MLflow and Weights & Biases.

They are written by the trackers of ``accelerate``. What a tracker does wrong must not cost a training: one that fails
is left out from then on.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.progress import SILENT, Progress
from antibackdoor.types import Json, Metrics

__all__ = ["TRACKERS", "Tracking", "check_trackers"]

TRACKERS = ("tensorboard", "mlflow", "wandb")
_PROJECT = "antibackdoor"
_BOARD = "tensorboard"  # a folder in that of the run
_EXTRAS = ("tensorboard", "mlflow")


def check_trackers(names: Sequence[str], out: Path | None) -> None:
    """Check what is asked for, before anything is read or trained.

    Raises:
        UnknownNameError: No tracker has that name.
        ConfigError: Its package is not installed, or there is no folder for its files.
    """
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, list(TRACKERS))
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"track: needs the package {name!r}, which is not installed: pip install {_extra(name)}")
    if names and out is None:
        raise ConfigError("track: needs a folder for the run; give `out`")


class Tracking:
    """Tells trackers how far a run is.

    TensorBoard's files lie in ``out/tensorboard``; MLflow and Weights & Biases go by their own environment, such as
    MLFLOW_TRACKING_URI and WANDB_MODE.

    Args:
        names: Of ``TRACKERS``, each once; empty for nothing.
        out: The folder of the run.
        settings: The resolved settings of the run.
        fresh: Remove what TensorBoard has of an earlier run in ``out``.
        progress: Told where a tracker fails.

    Raises:
        ConfigError: A tracker cannot be started.
    """

    def __init__(
        self,
        names: Sequence[str],
        out: Path,
        settings: Mapping[str, Json],
        *,
        fresh: bool = False,
        progress: Progress = SILENT,
    ) -> None:
        self._progress = progress
        self._trackers: dict[str, Any] = {}
        if fresh:
            shutil.rmtree(out / _BOARD, ignore_errors=True)
        for name in dict.fromkeys(names):
            try:
                self._trackers[name] = _started(name, out)
                self._trackers[name].store_init_configuration(dict(_flat(settings)))
            except Exception as error:
                raise ConfigError(f"track: {name} cannot be started: {_reason(error)}") from None

    def epoch(self, phase: str, epoch: int, loss: float, accuracy: float) -> None:
        """Log the end of an epoch.

        Args:
            phase: Its name.
            epoch: From 1 on, of the phase.
            loss: Mean over the trained images, in nats.
            accuracy: Share of them predicted as labelled, 0..1.
        """
        name = re.sub(r"[^\w\-. ]", "_", phase)
        self._each(lambda one: one.log({f"{name}/loss": loss, f"{name}/accuracy": accuracy}, step=epoch))

    def finish(self, metrics: Metrics) -> None:
        """Log the figures of the run, and close the trackers."""
        values = {f"result/{name}": value for name, value in dataclasses.asdict(metrics).items() if value is not None}
        if values:
            self._each(lambda one: one.log(values, step=0))
        self.close()

    def close(self) -> None:
        """Close the trackers; what is closed is not told anything any more."""
        self._each(lambda one: one.finish())
        self._trackers = {}

    def _each(self, tell: Callable[[Any], object]) -> None:
        for name, one in list(self._trackers.items()):
            try:
                tell(one)
            except Exception as error:  # noqa: BLE001 - a server that is gone, a full disk: the training goes on
                del self._trackers[name]
                self._progress.say(f"track: {name} is left out from now on: {_reason(error)}")


def _started(name: str, out: Path) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    made = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        tracker = made(_BOARD, logging_dir=out)
    elif name == "mlflow":
        tracker = made(_PROJECT, run_name=out.absolute().name)
    else:
        tracker = made(_PROJECT)
    if hasattr(tracker, "start"):  # older versions of accelerate start it when it is made
        tracker.start()
    return tracker


def _flat(values: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float) else json.dumps(value)


def _extra(name: str) -> str:
    return f"'antibackdoor[{name}]'" if name in _EXTRAS else name


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
