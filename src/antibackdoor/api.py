"""The Python door: the same as the command, on any network and any data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from antibackdoor import plugins
from antibackdoor.attacks import ATTACKS, Attack
from antibackdoor.config import DEFAULT_DEFENCE, RunConfig
from antibackdoor.data.arrays import fit_shape, with_classes
from antibackdoor.data.dataset import Items
from antibackdoor.data.sources import Loaded, from_arrays, from_dataset
from antibackdoor.defences import DEFENCES, Defence
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import SIGNALS
from antibackdoor.pipeline import Result, run
from antibackdoor.progress import SILENT, Progress
from antibackdoor.training import TrainPlan
from antibackdoor.typed import sections_of
from antibackdoor.types import ImageSet

__all__ = ["Data", "Result", "load_plugin", "scan", "train"]

Pixels: TypeAlias = np.ndarray[Any, Any] | Tensor
Model: TypeAlias = str | nn.Module | Callable[[], nn.Module]
Data: TypeAlias = str | Path | ImageSet | Items | tuple[Pixels, Sequence[int] | Pixels]


def load_plugin(path: str | Path) -> None:
    """Make the attacks, defences and signals of a Python file known by their names, as ``--plugin`` does.

    Args:
        path: A file with tables called as ours, such as ``DEFENCES = {"mine": Mine}``; see docs/extend.md. It is run,
            so it must be as trusted as any code. Loading it again does nothing.

    Raises:
        ConfigError: It is not there, does not run, has no such table, or what a table holds cannot be a member; then
            nothing of it is known.
    """
    file = plugins.PluginFile.read(Path(path))
    known = plugins.from_files()
    plugin = plugins.load(file)
    try:
        ATTACKS.check_files()
        DEFENCES.check_files()
        SIGNALS.check_files()
    except ConfigError:
        if plugin not in known:
            plugins.forget(plugin)
        raise


def train(
    data: Data,
    *,
    test: Data | None = None,
    model: Model = "auto",
    defence: str | Defence = DEFAULT_DEFENCE,
    attack: str | Attack | None = None,
    plan: TrainPlan | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    decisions: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
    progress: Progress = SILENT,
    track: Sequence[str] = (),
) -> Result:
    """Train on data that may be poisoned; the whole of ``antibackdoor train``.

    Args:
        data: A path to what docs/data.md lists, "embedded", "hub:NAME", an :class:`ImageSet`, a
            map-style torch Dataset of (image, label), or a pair (images uint8 (N, H, W[, C]) or a tensor
            (N, C, H, W), labels int (N,)).
        test: Clean test images, in any of these forms; without them a tenth of ``data`` is held out.
        model: A name, a network (copied, its weights drawn anew), or a factory of networks, from float (N, C, H, W) in
            [0, 1] to logits (N, K).
        defence: A name from ``DEFENCES``, or one with hyper-parameters, such as ``Witnesses(alpha=0.05)``.
        attack: Plant this attack, in experiments: a name from ``ATTACKS``, or as ``BadNets(rate=0.1)``.
        plan: How to train, as ``TrainPlan(epochs=20)``; None for what ``settings`` say, or the default.
        out: Folder for the files of the run; None writes none.
        overwrite: Replace the run in ``out``.
        resume: Continue the run in ``out``.
        decisions: CSV file of what a person decided about the images; see docs/decisions.md.
        seed: Of every random choice.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        settings: Sections of :class:`RunConfig`, such as ``{"train": {"epochs": 30}, "defence": {"alpha": 0.05}}``.
        progress: Shows the work.
        track: "tensorboard", "mlflow", "wandb": told losses and accuracies after every epoch, and the figures at the
            end; see docs/pipelines.md.

    Returns:
        The run: ``model``, ``isolation`` (scores, flagged, verdict), ``record`` and ``data``.

    Raises:
        AntiBackdoorError: What was given cannot work; see ``antibackdoor.errors``.
    """
    sections = sections_of(
        settings, defence=defence, attack=attack, plan=plan, decisions=decisions, seed=seed, device=device
    )
    call = _Call(out, overwrite, resume, progress, track, scan_only=False)
    return call.run(data, test, model, sections)


def scan(
    data: Data,
    *,
    model: Model = "auto",
    defence: str | Defence = DEFAULT_DEFENCE,
    attack: str | Attack | None = None,
    plan: TrainPlan | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    decisions: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
    progress: Progress = SILENT,
    track: Sequence[str] = (),
) -> Result:
    """Score and flag without training a network for use; arguments as in :func:`train`."""
    sections = sections_of(
        settings, defence=defence, attack=attack, plan=plan, decisions=decisions, seed=seed, device=device
    )
    call = _Call(out, overwrite, resume, progress, track, scan_only=True)
    return call.run(data, None, model, sections)


@dataclass(frozen=True)
class _Call:
    """What :func:`train` and :func:`scan` were told beside the data, the network and the configuration."""

    out: str | Path | None
    overwrite: bool
    resume: bool
    progress: Progress
    track: Sequence[str]
    scan_only: bool

    def run(self, data: Data, test: Data | None, model: Model, sections: dict[str, object]) -> Result:
        loaded = self._loaded(data, test, sections)
        if isinstance(model, str) and model != "auto":
            sections["model"] = model
        return run(
            RunConfig.parse(sections),
            out=None if self.out is None else Path(self.out),
            scan_only=self.scan_only,
            resume=self.resume,
            overwrite=self.overwrite,
            data=loaded,
            model=None if isinstance(model, str) else model,
            progress=self.progress,
            track=self.track,
        )

    def _loaded(self, data: Data, test: Data | None, sections: dict[str, object]) -> Loaded | None:
        """Say in the sections where the images are from; what is no path is read, and returned."""
        section = sections.get("data", {})
        given = dict(section) if isinstance(section, Mapping) else {}
        if isinstance(data, str | Path) and (test is None or isinstance(test, str | Path)):
            sections["data"] = {"source": str(data), "test": None if test is None else str(test), **given}
            return None
        trained_on = _image_set(data, "train", self.progress, training=True)
        measured_on = None
        if test is not None:
            measured_on = _image_set(test, "test", self.progress, training=False)
            measured_on = with_classes(measured_on, trained_on.classes)
            measured_on = fit_shape(measured_on, trained_on.shape, self.progress)
        if isinstance(section, Mapping):
            sections["data"] = {**given, "source": f"(given in Python: {trained_on.name})", "test": None}
        return Loaded(trained_on, measured_on)


def _image_set(data: Data, name: str, progress: Progress, *, training: bool) -> ImageSet:
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, str | Path):
        raise ConfigError("data and test must both be paths, or both be arrays, Datasets or ImageSets")
    if isinstance(data, tuple):
        images, labels = data
        return from_arrays(images, labels, name=name, training=training)
    return from_dataset(data, name=name, training=training, progress=progress)
