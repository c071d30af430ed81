"""Fine-pruning: remove the channels that clean images leave silent, then fine-tune what is left on clean images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from antibackdoor.defences.base import RepairDefence
from antibackdoor.defences.repair import accuracy_on, fit_trusted, nothing_flagged, tuning
from antibackdoor.defences.tracing import trace
from antibackdoor.errors import ConfigError
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, Runtime, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet, Outcome

__all__ = ["Channels", "FinePruning"]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a network's last feature map, as the next linear layer reads them.

    Attributes:
        reader: That layer; its inputs are the channels, one or several places of each side by side.
        count: C, channels of the map.
    """

    reader: nn.Linear
    count: int

    @staticmethod
    def of(model: nn.Module, data: ImageSet, runtime: Runtime) -> Channels:
        """Find the last feature map in front of a linear layer.

        Raises:
            ConfigError: There is no convolution and after it a linear layer that reads the map's channels.
        """
        calls = trace(model, data, runtime)
        last = max((i for i, call in enumerate(calls) if isinstance(call.module, nn.Conv2d)), default=len(calls))
        count = 0
        for call in calls[last:]:
            if isinstance(call.module, nn.Linear):
                if count and call.module.in_features % count == 0:
                    return Channels(call.module, count)
                break
            if len(call.shape) == 4:
                count = call.shape[1]
        raise ConfigError(
            "model: fine-pruning needs a convolution and, after it, a linear layer that reads its channels"
        )

    def activations(self, model: nn.Module, data: ImageSet, runtime: Runtime) -> Tensor:
        """Return the mean absolute activation of each channel over the images, float32 (C,)."""
        total = torch.zeros(self.count, device=self.reader.weight.device)

        def add(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            total.add_(inputs[0].float().abs().reshape(-1, self.count, self._places).mean(2).sum(0))

        hook = self.reader.register_forward_hook(add)
        try:
            logits_of(model, data, runtime)
        finally:
            hook.remove()
        # All processes must prune in the same order.
        return (runtime.sum(total) / (runtime.world * len(data))).cpu()

    def mask(self, pruned: Tensor) -> Tensor:
        """Return float (in_features,), 0 where the reader reads one of the channels ``pruned`` (int64), else 1."""
        alive = torch.ones(self.count, self._places)
        alive[pruned] = 0
        return alive.flatten().to(self.reader.weight.device)

    @property
    def _places(self) -> int:
        return self.reader.in_features // self.count


@dataclass(frozen=True)
class FinePruning(RepairDefence):
    """Prune the channels that are least active on trusted images, then fine-tune on these images.

    A backdoor can live in channels that clean images do not use. The network is trained by the plan as if there were no
    poison; the channels of its last feature map are pruned in the order of their mean activation on the trusted images,
    one in a hundred at a time, for as long as the accuracy on these images falls by no more than ``tolerance``; what is
    left is fine-tuned on them, and pruned channels stay pruned.

    Differences from the paper and its public versions: the map is that of the last convolution after the normalisation,
    the shortcut and the activation that follow it, and a channel is pruned where the next linear layer reads it, since
    in a residual network a channel of the convolution alone is fed by the shortcut too. The accuracy that ends the
    pruning is that on trusted images, never on test images, and the last state within the tolerance is used (a widely
    used version returns the one after it). In an experiment the network has been trained on these images, so it is sure
    of them.

    Attributes:
        tolerance: Largest fall of the accuracy on trusted images, 0..1, in points and not relative to it; a widely used
            version takes a relative 10 %.

    Source:
        Liu, Dolan-Gavitt, Garg, Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, RAID 2018.
        Length and rate of the fine-tuning are ours: BackdoorBench takes 100 epochs of 2,500 images in batches of 256,
        1,000 updates, at 0.01 along a cosine.
    """

    tolerance: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"tolerance: must be at least 0 and below 1, got {self.tolerance}")

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan, prune, fine-tune."""
        trusted = self._handed_over()
        model = build_model(seeds.generator("init"))
        channels = Channels.of(fit.runtime.place(model), trusted, fit.runtime)
        history = fit(model, data, Phase("train", plan))
        pruned, sentence = self._prune(model, channels, trusted, fit.runtime)
        tuned = self._fine_tune(model, channels.reader, channels.mask(pruned), trusted, fit, plan, len(data))
        return Outcome(model, nothing_flagged(history, data, sentence), (history, tuned))

    def _prune(self, model: nn.Module, channels: Channels, trusted: ImageSet, runtime: Runtime) -> tuple[Tensor, str]:
        """Prune in place; returns the channels, int64, and what was done in words."""
        weight = channels.reader.weight
        whole = weight.detach().clone()
        order = channels.activations(model, trusted, runtime).argsort(stable=True)

        def keep_from(count: int) -> float:
            with torch.no_grad():
                weight.copy_(whole * channels.mask(order[:count]))
            return accuracy_on(model, trusted, runtime)

        before = after = accuracy_on(model, trusted, runtime)
        step, within = math.ceil(channels.count / 100), 0
        for count in range(step, channels.count, step):
            accuracy = keep_from(count)
            if accuracy < before - self.tolerance - 1e-9:
                break
            within, after = count, accuracy
        keep_from(within)
        return order[:within], (
            f"{within} of {channels.count} channels were pruned; accuracy on the trusted images went from "
            f"{100 * before:.1f} to {100 * after:.1f} % before the fine-tuning."
        )

    def _fine_tune(
        self,
        model: nn.Module,
        reader: nn.Linear,
        alive: Tensor,
        trusted: ImageSet,
        fit: Fit,
        plan: TrainPlan,
        observed: int,
    ) -> History:
        short = tuning(plan, trusted, fit, updates=self.tune_updates, lr=self.tune_lr, batch_size=self.batch_size)
        # A weight of zero without a gradient stays zero: momentum and weight decay add nothing to it.
        hook = reader.weight.register_hook(lambda gradient: gradient * alive)
        try:
            return fit_trusted(model, trusted, fit, Phase("fine-tune", short), observed=observed)
        finally:
            hook.remove()
