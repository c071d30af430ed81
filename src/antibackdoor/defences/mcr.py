"""Mode connectivity repair: between two networks that hold a backdoor lie networks that do not."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from antibackdoor.data.batches import Batches
from antibackdoor.defences.base import RepairDefence
from antibackdoor.defences.repair import fit_trusted, nothing_flagged, tuning
from antibackdoor.errors import ConfigError
from antibackdoor.models import BuildModel
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, Runtime, TrainPlan, evaluating, logits_of
from antibackdoor.training.step import split_batches
from antibackdoor.types import History, ImageSet, Outcome

__all__ = ["Curve", "Mcr", "renew_norms"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Curve(nn.Module):
    """A quadratic Bezier curve through the weights of two networks: ``(1-t)^2 start + 2t(1-t) bend + t^2 end``.

    Only the bend is trained. In training every forward pass is that of the network at a new t, uniform in 0..1, drawn
    from the global stream, which the training loop seeds for every epoch; in evaluation t is 0.5.

    Args:
        start: The network at t = 0; copied.
        end: The network at t = 1, of the same kind; copied.
    """

    def __init__(self, start: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.bend = copy.deepcopy(start)
        self.start = copy.deepcopy(start).requires_grad_(False)
        self.end = copy.deepcopy(end).requires_grad_(False)
        with torch.no_grad():
            ends = zip(self.start.parameters(), self.end.parameters(), strict=True)
            for bend, (first, last) in zip(self.bend.parameters(), ends, strict=True):
                bend.copy_((first + last.to(first.device)) / 2)

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, C, H, W) in [0, 1] to the logits (N, K) of a network on the curve."""
        t = torch.rand(()) if self.training else torch.tensor(0.5)
        logits: Tensor = torch.func.functional_call(self.bend, self._weights(t), (images,))
        return logits

    def at(self, t: float) -> nn.Module:
        """Return a copy of the network at ``t`` (0..1); its batch-normalisation statistics are still to be renewed."""
        model = copy.deepcopy(self.bend)
        weights = self._weights(torch.tensor(t))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        return model

    def _weights(self, t: Tensor) -> dict[str, Tensor]:
        first, last = dict(self.start.named_parameters()), dict(self.end.named_parameters())
        # The numbers are on the CPU, so that they are the same wherever the weights are.
        shares = [(1 - t).square(), 2 * t * (1 - t), t.square()]
        return {
            name: shares[0] * first[name] + shares[1] * bend + shares[2] * last[name]
            for name, bend in self.bend.named_parameters()
        }


@torch.no_grad()
def renew_norms(model: nn.Module, data: ImageSet, runtime: Runtime, *, batch_size: int = 128) -> None:
    """Measure the statistics of every batch normalisation anew: the mean over batches, in one pass, no augmentation.

    Args:
        model: On the device of ``runtime``; changed in place, left in the mode it was in.
        data: The images, two or more.
        runtime: Device and precision.
        batch_size: Images in a batch.
    """
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    momenta = [norm.momentum for norm in norms]
    batches = Batches(data, runtime.device, resident=runtime.device.type == "cpu")
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # stands for a plain mean
            norm.train()
        for rows in torch.arange(len(data)).split(split_batches(len(data), batch_size)):
            images, _ = batches.take(rows)
            with runtime.autocast():
                model(images.to(torch.float32, memory_format=torch.channels_last).div_(255))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@dataclass(frozen=True)
class Mcr(RepairDefence):
    """Train a curve between two networks on trusted images, and take the network at a point of it.

    One end is the network trained by the plan as if there were no poison. The other is a copy of it, fine-tuned on the
    trusted images, or a second network trained like the first from other initial weights. The curve between them
    (:class:`Curve`) is trained on the trusted images; those inside it keep the accuracy and may lose the backdoor.
    Batch-normalisation statistics at a point are measured anew on the trusted images. Of ``positions`` the one of the
    lowest mean loss on the trusted images is used.

    Differences from the paper: there results are shown for all points, and public versions take 0.1 or choose by test
    images; the loss on images that trained the curve says that a network works, not that its backdoor is gone. Lengths
    are counted in updates, since here 5 % may be a few hundred images.

    Attributes:
        second: The other end: "tuned" (a copy, fine-tuned) or "trained" (a second training on the observed data, which
            costs as much as the first; the ends of the paper's main experiment).
        curve_updates: Updates of the curve, at least 1, rounded up to whole epochs.
        curve_lr: Learning rate of the curve at its start; it falls to zero along a cosine.
        positions: Points t to choose from, above 0 and below 1; t = 0 is the network trained by the plan.

    Source:
        Zhao et al., Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness, ICLR 2020;
        github.com/IBM/model-sanitization (100 to 600 epochs at 0.01 to 0.03, 2,000 updates and more for 2,500 images
        in batches of 128; BackdoorBench 100 epochs at 3e-5 and t = 0.1). The curve is that of Garipov et al., Loss
        Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, NeurIPS 2018.
    """

    second: Literal["trained", "tuned"] = "tuned"
    curve_updates: int = 1000
    curve_lr: float = 0.01
    positions: tuple[float, ...] = (0.1, 0.2, 0.3)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curve_updates < 1:
            raise ConfigError(f"curve_updates: must be at least 1, got {self.curve_updates}")
        if not (math.isfinite(self.curve_lr) and self.curve_lr > 0):
            raise ConfigError(f"curve_lr: must be a finite number above 0, got {self.curve_lr}")
        if not self.positions or not all(0 < t < 1 for t in self.positions):
            raise ConfigError(
                f"positions: must be numbers above 0 and below 1, one or more, got {list(self.positions)}"
            )

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan, find the other end, train the curve, take a network on it."""
        trusted = self._handed_over()
        model = build_model(seeds.generator("init"))
        histories = [fit(model, data, Phase("train", plan))]
        other, history = self._other_end(model, data, trusted, build_model, fit, plan, seeds)
        curve = Curve(model, other)
        short = tuning(plan, trusted, fit, updates=self.curve_updates, lr=self.curve_lr, batch_size=self.batch_size)
        histories += [history, fit_trusted(curve, trusted, fit, Phase("curve", short), observed=len(data))]
        chosen, sentence = self._choose(curve, trusted, fit.runtime)
        return Outcome(chosen, nothing_flagged(histories[0], data, sentence), tuple(histories))

    def _other_end(
        self,
        model: nn.Module,
        data: ImageSet,
        trusted: ImageSet,
        build_model: BuildModel,
        fit: Fit,
        plan: TrainPlan,
        seeds: Seeds,
    ) -> tuple[nn.Module, History]:
        if self.second == "trained":
            other = build_model(seeds.child("second end").generator("init"))
            return other, fit(other, data, Phase("second end", plan))
        other = copy.deepcopy(model)
        short = tuning(plan, trusted, fit, updates=self.tune_updates, lr=self.tune_lr, batch_size=self.batch_size)
        return other, fit_trusted(other, trusted, fit, Phase("second end", short), observed=len(data))

    def _choose(self, curve: Curve, trusted: ImageSet, runtime: Runtime) -> tuple[nn.Module, str]:
        """Return the network of the lowest loss on the trusted images, and the losses in words."""
        models = [curve.at(t) for t in self.positions]
        losses = []
        for model in models:
            renew_norms(model, trusted, runtime, batch_size=self.batch_size)
            loss = ce(logits_of(model, trusted, runtime), trusted.labels).mean()
            # All processes must take the same network.
            losses.append(float(runtime.sum(loss.to(runtime.device))) / runtime.world)
        best = losses.index(min(losses))
        listed = ", ".join(f"{loss:.3g} at {t:g}" for t, loss in zip(self.positions, losses, strict=True))
        return models[best], (
            f"The network at t = {self.positions[best]:g} of the curve is used; losses on the trusted images, in nats, "
            f"are {listed}."
        )
