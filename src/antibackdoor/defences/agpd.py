"""AGPD: images whose activations pull another way than those of clean images of their class are removed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from antibackdoor.defences.base import FilterDefence, TrustedDefence
from antibackdoor.defences.outlying_classes import SMALLEST_CLASS, isolation_of
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import Network
from antibackdoor.isolation.gradients import activation_gradients, cosines, dispersion, peeled, settled_at
from antibackdoor.isolation.signals.features import used
from antibackdoor.isolation.untangle import outlyingness
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan, logits_of
from antibackdoor.types import ImageSet, Isolation, Outcome

__all__ = ["Agpd", "Targets"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Which classes are targets, and in which layer that shows.

    Attributes:
        layer: Its place; where no class is a target, the one in which a class lies furthest out.
        labels: The target classes.
        by_outlier: Whether they lie above the other classes, and not only above a fixed dispersion.
        outlying: float64 (L, K), how far the dispersion of each class lies above the median, in deviations.
    """

    layer: int
    labels: tuple[int, ...]
    by_outlier: bool
    outlying: NDArray[np.float64]


@dataclass(frozen=True)
class Agpd(FilterDefence, TrustedDefence):
    """Remove images whose activation gradients turn away from those of trusted images, given some; train anew.

    A network is trained by the plan, as if there were no poison. For every convolution, the gradient of the logit of an
    image's label with respect to the activations is averaged over places: what the image would have to be more of. In
    each class and layer the image least like the trusted ones by the cosine is found; the dispersion is the root mean
    square, over the class, of the difference between likeness to the trusted and to that image. Classes whose
    dispersion lies ``threshold`` median deviations and more above the median of the classes, in the layer in which one
    lies furthest out, are targets; where there is none, those with a dispersion above ``dispersed`` in one of the last
    layers but one. In a target class images are taken in rounds, always those nearest to what is taken, until the rest
    changes least; what was taken is flagged, and a new network is trained by the same plan on the rest. Scores are 0.5
    to 1 for what is flagged, 0 to 0.5 for the rest of its class, and 1 less in other classes. Classes under 20 images
    are left out of it. Costs one pass forward and back over the set; keeps a number for every channel.

    Differences from the released code: all convolutions that run are looked at, where it names some of each network;
    trusted images are those of the run, where it takes test images, and if the network is wrong about all of a class,
    they are used all the same; the last round before those that change little counts as poison, which it leaves out, so
    that it loses all of a group that one round takes; with fewer rounds than ``window`` half of them are compared,
    where it stops with an error. The step of a round is not in its published settings and is ours.

    Attributes:
        per_class: Trusted images of a class that are used, of those that the network predicts rightly, at least 1.
        threshold: Median deviations above the median, above 0; the paper's e^2.
        dispersed: Dispersion from which on a class is a target by itself, 0..2.
        step: Part of the range of scores that is taken in a round, above 0 and below 1.
        window: Rounds in a row that must change little, at least 1.

    Source:
        Yuan et al., Activation Gradient based Poisoned Sample Detection Against Backdoor Attacks, ICLR 2025;
        BackdoorBench's ``agpd``.
    """

    per_class: int = 10
    threshold: float = math.exp(2)
    dispersed: float = 0.3
    step: float = 0.05
    window: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("per_class", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ConfigError(f"threshold: must be a finite number above 0, got {self.threshold}")
        if not 0 <= self.dispersed <= 2:
            raise ConfigError(f"dispersed: must be in 0..2, got {self.dispersed}")
        if not 0 < self.step < 1:
            raise ConfigError(f"step: must be above 0 and below 1, got {self.step}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan, look at the gradients and flag.

        Raises:
            ConfigError: No trusted images were handed over, or the network has no convolution.
        """
        trusted = self._handed_over()
        model = build_model(seeds.generator("init"))
        if not any(isinstance(module, _ConvNd) for module in model.modules()):
            raise ConfigError("defence: Agpd needs a network with convolutions")
        history = fit(model, data, Phase("train", plan))
        right = logits_of(model, trusted, fit.runtime).argmax(1) == trusted.labels
        trusted = trusted.select(self._chosen(trusted.labels, right, seeds.generator("agpd")))
        network = Network(model, data, fit.runtime)
        convolutions = [module for module in model.modules() if isinstance(module, _ConvNd)]
        layers = used(network, convolutions, lambda inputs: inputs.ndim == 4)
        observed = activation_gradients(network, layers)
        known = activation_gradients(Network(model, trusted, fit.runtime), layers)
        isolation = self.judge(observed, [_means(part, trusted) for part in known], data)
        return Outcome(model, fit.runtime.first(isolation), (history,))  # All processes must leave out the same images.

    def judge(
        self, observed: list[NDArray[np.float32]], references: list[NDArray[np.float32]], data: ImageSet
    ) -> Isolation:
        """Return who is suspected.

        Args:
            observed: (N, C) a layer, gradients of every image.
            references: (K, C) a layer, mean gradients of the trusted images of every class.
            data: The observed data.
        """
        labels = data.labels.numpy()
        judged = [label for label in range(data.num_classes) if int((labels == label).sum()) >= SMALLEST_CLASS]
        gaps = np.zeros((len(observed), data.num_classes))
        least = np.zeros((len(observed), data.num_classes), dtype=np.int64)
        for layer, label in ((layer, label) for layer in range(len(observed)) for label in judged):
            gradients = observed[layer][labels == label].astype(np.float64)
            gaps[layer, label], least[layer, label] = dispersion(gradients, references[layer][label].astype(np.float64))
        targets = self.targets(gaps, judged)
        scores, flagged = np.full(len(labels), -1.0), np.zeros(len(labels), dtype=bool)
        for label in judged:
            rows = np.flatnonzero(labels == label)
            gradients = observed[targets.layer][rows].astype(np.float64)
            reference = references[targets.layer][label].astype(np.float64)
            first = int(least[targets.layer, label])
            poison = np.arange(len(rows)) == first
            if label in targets.labels:
                taken_in, changes = peeled(gradients, reference, first, self.step)
                poison = taken_in < settled_at(changes, self.window)
                flagged[rows] = poison
            near = cosines(gradients, gradients[poison].mean(0)) - cosines(gradients, reference)  # -2..2
            scores[rows] = (near + 2) / 8 + (0.5 * poison if label in targets.labels else -1)
        return self._isolation(targets, gaps, torch.from_numpy(scores).float(), torch.from_numpy(flagged), data, judged)

    def targets(self, gaps: NDArray[np.float64], judged: list[int]) -> Targets:
        """Return the target classes.

        Args:
            gaps: (L, K), dispersion of each class in each layer.
            judged: Labels of the classes that are large enough.
        """
        outlying = np.zeros_like(gaps)
        for layer in range(len(gaps)):
            outlying[layer, judged] = outlyingness(gaps[layer, judged]) if judged else 0.0
        furthest = int(outlying.max(1).argmax())
        found = tuple(np.flatnonzero(outlying[furthest] > self.threshold).tolist())
        if found:
            return Targets(furthest, found, True, outlying)
        last = list(range(len(gaps)))[-4:-1] or [len(gaps) - 1]
        counts = [int((gaps[layer] > self.dispersed).sum()) for layer in last]
        if not any(counts):
            return Targets(furthest, (), False, outlying)
        layer = last[int(np.argmax(counts))]
        return Targets(layer, tuple(np.flatnonzero(gaps[layer] > self.dispersed).tolist()), False, outlying)

    def _chosen(self, labels: Tensor, right: Tensor, generator: torch.Generator) -> Tensor:
        """Return rows of trusted images, at most ``per_class`` of each class."""
        rows = []
        for label in labels.unique():
            mine = (labels == label) & right
            members = (mine if bool(mine.any()) else labels == label).nonzero().squeeze(1)
            rows.append(members[torch.randperm(len(members), generator=generator)[: self.per_class]])
        return torch.cat(rows).sort().values

    def _isolation(
        self,
        targets: Targets,
        gaps: NDArray[np.float64],
        scores: Tensor,
        flagged: Tensor,
        data: ImageSet,
        judged: list[int],
    ) -> Isolation:
        where = f"in convolution {targets.layer + 1} of {len(gaps)}"
        evidence = [
            f"{data.classes[label]}: gradients disperse by {gaps[targets.layer, label]:.3g} {where}, "
            f"{targets.outlying[targets.layer, label]:.3g} deviations above the median of the classes, and "
            f"{int(flagged[data.labels == label].sum())} of its {int((data.labels == label).sum())} images are taken."
            for label in targets.labels
        ]
        if not evidence:
            evidence.append(
                f"No class disperses more than the others: one lies {float(targets.outlying.max()):.3g} deviations "
                f"above the median {where}, and {self.threshold:.3g} would count."
            )
        return isolation_of(scores, flagged, evidence, judged=len(judged), classes=data.num_classes)


def _means(gradients: NDArray[np.float32], trusted: ImageSet) -> NDArray[np.float32]:
    """Return the mean of each class, (K, C); zeros where a class has no image."""
    labels = trusted.labels.numpy()
    found = np.zeros((trusted.num_classes, gradients.shape[1]), dtype=np.float32)
    for label in np.unique(labels):
        found[label] = gradients[labels == label].mean(0)
    return found
