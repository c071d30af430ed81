"""Neural attention distillation: the network learns to look where its own fine-tuned copy looks."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from antibackdoor.defences.base import RepairDefence
from antibackdoor.defences.repair import fit_trusted, nothing_flagged, tuning
from antibackdoor.defences.tracing import Call, trace
from antibackdoor.errors import ConfigError
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Objective, Phase, Runtime, Step, TrainPlan
from antibackdoor.types import ImageSet, Outcome

__all__ = ["Nad", "attention_map", "feature_maps", "watching"]

_TINY = 1e-6


def attention_map(features: Tensor, power: float) -> Tensor:
    """Return where the features are strong, whatever their scale.

    Args:
        features: float (B, C, H, W).
        power: Exponent of the absolute values.

    Returns:
        float32 (B, H * W): the sum over channels of ``|features| ** power``, of L2 norm 1 (0 for no features).
    """
    strength: Tensor = features.float().abs().pow(power).sum(1).flatten(1)
    length: Tensor = torch.linalg.vector_norm(strength, dim=1, keepdim=True)
    return strength / (length + _TINY)


def feature_maps(model: nn.Module, data: ImageSet, runtime: Runtime, most: int) -> list[Call]:
    """Return the calls that give the last feature map of each resolution, the smallest resolutions last.

    In a residual network that is the output of each group. Where a resolution has modules made of others, the last of
    these counts: what comes after a block at its resolution is the beginning of the next group.

    Args:
        model: On the device of ``runtime``.
        data: Two of its images go through the network.
        runtime: Device and precision.
        most: Largest number of maps; the earlier ones are left out.

    Raises:
        ConfigError: The network has no feature map larger than one pixel.
    """
    last: dict[tuple[int, ...], Call] = {}
    for call in trace(model, data, runtime):
        place = call.shape[2:]
        if len(place) != 2 or min(place) < 2:
            continue
        if place not in last or _is_composite(call) or not _is_composite(last[place]):
            last[place] = call
    if not last:
        raise ConfigError("model: nad needs a network with feature maps (B, C, H, W)")
    return list(last.values())[-most:]


@contextlib.contextmanager
def watching(model: nn.Module, maps: Sequence[Call], power: float) -> Iterator[dict[int, Tensor]]:
    """Yield what holds the attention maps of the latest forward pass, by their place in ``maps``.

    Args:
        model: The network of the calls.
        maps: Calls of its modules.
        power: See :func:`attention_map`.
    """
    seen: dict[int, Tensor] = {}
    numbers: dict[nn.Module, int] = {}

    def begin(_: nn.Module, __: tuple[object, ...]) -> None:
        seen.clear()
        numbers.clear()

    def note(module: nn.Module, _: tuple[object, ...], output: Tensor) -> None:
        number = numbers.get(module, 0)
        numbers[module] = number + 1
        for place, call in enumerate(maps):
            if call.module is module and call.number == number:
                # At once: a later activation may overwrite the features.
                seen[place] = attention_map(output, power)

    hooks = [model.register_forward_pre_hook(begin)]
    hooks += [module.register_forward_hook(note) for module in {call.module for call in maps}]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Nad(RepairDefence):
    """Distil the attention of a copy fine-tuned on trusted images into the network, on these images.

    The network is trained by the plan as if there were no poison. The teacher is a copy of it, fine-tuned on the
    trusted images. The network then minimises, on the same images, cross-entropy plus, for each of its last three
    groups, beta times the mean squared difference between its attention map and the teacher's; see
    :func:`attention_map`. In a network of another kind the groups are its feature maps of different resolutions.

    Both trainings begin with a tenth of their updates at a high learning rate, as the authors' student does.
    Differences from their code: there is no Nesterov correction, weight decay and augmentation are those of the plan,
    and lengths are counted in updates, since here 5 % may be a few hundred images. Nothing is chosen by test images.

    Attributes:
        updates: Updates of the distillation, at least 1, rounded up to whole epochs in both parts.
        first_lr: Constant learning rate of the first tenth of teacher and distillation.
        tune_lr: Constant learning rate of the rest of the teacher.
        lr: Constant learning rate of the rest of the distillation.
        betas: Weights of the groups, at least 0, the last group last. In a network with fewer maps the first are left
            out.
        power: Exponent p of the attention maps, above 0.

    Source:
        Li et al., Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks, ICLR 2021;
        github.com/bboylyg/NAD. There the teacher is tuned for 5 to 10 epochs and the student for 20 of 2,500 images in
        batches of 64, 200 to 400 and 800 updates; the student for two epochs at 0.1, then at 0.01.
    """

    updates: int = 800
    first_lr: float = 0.1
    lr: float = 0.01
    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    power: float = 2.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates < 1:
            raise ConfigError(f"updates: must be at least 1, got {self.updates}")
        for name in ("first_lr", "lr", "power"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: must be a finite number above 0, got {value}")
        if not self.betas or not all(math.isfinite(beta) and beta >= 0 for beta in self.betas):
            raise ConfigError(f"betas: must be finite numbers of at least 0, one or more, got {list(self.betas)}")

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan, tune a copy, distil it into the network."""
        trusted = self._handed_over()
        student = build_model(seeds.generator("init"))
        feature_maps(fit.runtime.place(student), trusted, fit.runtime, 1)  # Refuses a network that has none.
        history = fit(student, data, Phase("train", plan))
        teacher = copy.deepcopy(student)
        size = len(data)
        tuned = [
            fit_trusted(teacher, trusted, fit, phase, observed=size)
            for phase in self._phases("teacher", self.tune_updates, self.tune_lr, plan, trusted, fit)
        ]
        teacher.eval()
        maps = [feature_maps(model, trusted, fit.runtime, len(self.betas)) for model in (student, teacher)]
        with watching(student, maps[0], self.power) as own, watching(teacher, maps[1], self.power) as shown:
            objective = self._distilling(own, shown, teacher, fit.runtime)
            distilled = [
                fit_trusted(student, trusted, fit, phase, observed=size, objective=objective)
                for phase in self._phases("distil", self.updates, self.lr, plan, trusted, fit)
            ]
        sizes = ", ".join("x".join(map(str, call.shape[2:])) for call in maps[0])
        sentence = f"The attention of a fine-tuned copy was distilled at {len(maps[0])} feature maps ({sizes})."
        return Outcome(student, nothing_flagged(history, data, sentence), (history, *tuned, *distilled))

    def _phases(self, name: str, updates: int, lr: float, plan: TrainPlan, trusted: ImageSet, fit: Fit) -> list[Phase]:
        """Return a tenth of the updates at the high rate, and the rest."""
        first = math.ceil(updates / 10)
        parts = ((first, self.first_lr), (max(1, updates - first), lr))
        plans = [
            tuning(plan, trusted, fit, updates=count, lr=rate, batch_size=self.batch_size).but(schedule="constant")
            for count, rate in parts
        ]
        return [Phase(f"{name} {number}", part) for number, part in enumerate(plans, start=1)]

    def _distilling(
        self, own: dict[int, Tensor], shown: dict[int, Tensor], teacher: nn.Module, runtime: Runtime
    ) -> Objective:
        """Return the objective; ``own`` and ``shown`` hold the maps of the latest pass of student and teacher."""

        def objective(step: Step) -> Tensor:
            with torch.no_grad(), runtime.autocast():
                teacher(step.images)
            betas = self.betas[-len(own) :]
            apart = [(own[place] - shown[place]).square().mean() for place in sorted(own)]
            return step.losses.mean() + sum(beta * term for beta, term in zip(betas, apart, strict=True))

        return objective


def _is_composite(call: Call) -> bool:
    return next(call.module.children(), None) is not None
