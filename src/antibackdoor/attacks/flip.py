"""FLIP: labels alone are poisoned, images stay as they are (Jha et al., Label Poisoning is All You Need, 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.surrogate import architecture_of, artefact_key, cached, device_of
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.triggers import grid_pattern, patch_at, sinusoid
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, Step, TrainPlan
from antibackdoor.types import ImageSet

__all__ = ["Flip", "matching_gradient"]

_START = 5.0  # Logit of the true class before any step; the others start at 0.
_BATCH = 256

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Flip(DirtyLabelAttack):
    """Labels that make training go as if triggered images were in the data; the trigger is seen at test alone.

    Experts are trained on the clean set and triggered copies of some of its images under the target's label. Then
    soft labels of the clean images are moved until, at weights along the experts' training, a step on the clean
    images with soft labels is the expert's step. Images whose soft label moved furthest get the class it moved to.

    Attributes:
        source: The class that the trigger works on, 0..K-1; every class that it would change if None.
        trigger: "sinusoid" over the columns, or "patch" (the 3x3 grid, in the bottom-right corner).
        delta: Amplitude of the sinusoid, in steps of 255.
        frequency: Its cycles over the width.
        patch_size: Side of the patch in pixels; 3 for every 32 pixels of the shorter side if None.
        experts: Networks, at least 1.
        expert_epochs: Passes over the data for each of them.
        checkpoints: Weights kept of each of them, evenly over its training, at least 1.
        copies: Triggered copies for the experts, as a share of the clean set, above 0 and at most 1.
        passes: Passes over the soft labels for each expert, at least 1.
        lr: Step size of the soft labels' logits.
        flips: int64 (N,), the class each image would get; filled in by :meth:`prepare`.
        margins: float (N,), how far its soft label moved there; filled in by :meth:`prepare`.

    Source:
        Jha et al., Label Poisoning is All You Need, NeurIPS 2023; the example of its code has source 9 and target 4.
        Both steps of a comparison start from the same weights and momentum, which cancel in the difference: it is that
        of the gradients. So ours matches gradients and keeps no optimiser's state; both gradients see the same clean
        images; batch normalisation uses its stored statistics; and experts are fewer and shorter.
    """

    weak_up_to: ClassVar[int] = 6_000

    source: int | None = None
    trigger: Literal["patch", "sinusoid"] = "sinusoid"
    delta: float = 20.0
    frequency: float = 8.0
    patch_size: int | None = None
    experts: int = 2
    expert_epochs: int = 8
    checkpoints: int = 12
    copies: float = 0.1
    passes: int = 4
    lr: float = 150.0
    flips: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    margins: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is not None and self.source < 0:
            raise ConfigError(f"source: must be a class index of at least 0, got {self.source}")
        if self.source is not None and self.labelling == "all-to-one" and self.source == self.target:
            raise ConfigError(f"source: must be another class than the target, got {self.source}")
        if not 0 < self.delta <= 255:
            raise ConfigError(f"delta: must be above 0 and at most 255, got {self.delta}")
        for name, value in (("frequency", self.frequency), ("lr", self.lr)):
            if not value > 0:
                raise ConfigError(f"{name}: must be above 0, got {value}")
        if self.patch_size is not None and self.patch_size < 1:
            raise ConfigError(f"patch_size: must be at least 1 pixel, got {self.patch_size}")
        for name in ("experts", "expert_epochs", "checkpoints", "passes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 < self.copies <= 1:
            raise ConfigError(f"copies: must be above 0 and at most 1, got {self.copies}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the experts and choose a label for every image.

        Raises:
            PoisonError: The target is not a class, the patch does not fit, or no image is of another class.
        """
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        _, height, width = clean.shape
        if self._side(height, width) > min(height, width):
            raise PoisonError(f"a patch of {self.patch_size} pixels is larger than the pictures ({height}x{width})")
        if self.source is not None and self.source >= clean.num_classes:
            raise PoisonError(f"attack source {self.source} is not a class: the set has {clean.num_classes}")
        if not bool(ready.test_candidates(clean.labels).any()):
            every = f"every image is of the target class {self.target}"
            none = every if self.source is None else f"no image of class {self.source} is to change"
            raise PoisonError(f"{none}, so there is nothing to trigger")
        params = parameters_of(ready) | {"model": architecture_of(build_model)}

        def make() -> dict[str, Tensor]:
            soft = _START * F.one_hot(clean.labels, clean.num_classes).float()
            for number in range(self.experts):
                generator = seeds.generator(f"flip expert {number}")
                network = build_model(generator)
                copied = ready._copies(clean, generator)
                kept = ready._train_expert(network, clean, copied, fit, f"flip-expert-{number}")
                soft = ready._match(network, kept, clean, copied, soft, generator)
            return dict(zip(("flips", "margins"), _furthest(soft, clean.labels), strict=True))

        return ready._ready(**cached(artefact_key("flip", clean, params, seeds), make))

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Return the images as they are: training images never carry the trigger."""
        return images.clone()

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the trigger on test images."""
        if self.trigger == "sinusoid":
            return sinusoid(images, self.delta / 255, self.frequency)
        height, width = images.shape[-2:]
        side = self._side(height, width)
        return patch_at(images, grid_pattern(side), height - side, width - side)

    def test_candidates(self, labels: Tensor) -> Tensor:
        """Return the test images whose class the trigger would change; those of the source class where there is one."""
        aimed = super().test_candidates(labels)
        return aimed if self.source is None else aimed & (labels == self.source)

    def candidates(self, labels: Tensor) -> Tensor:
        """Return every image: any label may be changed."""
        return torch.ones_like(labels, dtype=torch.bool)

    def select(self, allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the ``count`` images whose soft labels moved furthest; the generator is not used."""
        _, margins = self._prepared()
        return allowed[margins[allowed].sort(descending=True, stable=True).indices[:count]]

    def relabel(self, labels: Tensor, index: Tensor) -> Tensor:
        """Return the label chosen for each row; it need not be the target."""
        flips, _ = self._prepared()
        return flips[index.cpu()].to(labels.device)

    def _prepared(self) -> tuple[Tensor, Tensor]:
        if self.flips is None or self.margins is None:
            raise PoisonError("a label-only attack must be prepared before use, since each label is chosen there")
        return self.flips, self.margins

    def _side(self, height: int, width: int) -> int:
        return self.patch_size or max(2, round(3 * min(height, width) / 32))

    def _copies(self, clean: ImageSet, generator: torch.Generator) -> ImageSet:
        """Return triggered copies of images, under the label that the trigger is to give them."""
        rows = self.test_candidates(clean.labels).nonzero().squeeze(1)
        count = max(1, min(len(rows), round(self.copies * len(clean))))
        rows = rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values
        chosen = clean.select(rows)
        parts = [
            self.stamp_test(clean.images[part].float().div(255), part, clean.labels[part]).mul(255).round()
            for part in rows.split(_BATCH)
        ]
        return replace(chosen, images=torch.cat(parts).to(torch.uint8), labels=self.target_of(chosen.labels))

    def _train_expert(
        self, network: nn.Module, clean: ImageSet, copied: ImageSet, fit: Fit, name: str
    ) -> list[Weights]:
        plan = TrainPlan(epochs=self.expert_epochs)
        both = replace(
            clean,
            images=torch.cat([clean.images, copied.images]),
            labels=torch.cat([clean.labels, copied.labels]),
            ids=(*clean.ids, *(f"triggered/{row}" for row in range(len(copied)))),
        )
        updates = plan.epochs * max(1, len(both) // plan.batch_size)
        kept: list[Weights] = []
        fit(network, both, Phase(name, plan), objective=_recorder(network, kept, max(1, updates // self.checkpoints)))
        network.eval().requires_grad_(False)
        kept.append({key: value.detach().clone() for key, value in network.state_dict().items()})
        return kept[-self.checkpoints :]

    def _match(
        self,
        network: nn.Module,
        kept: list[Weights],
        clean: ImageSet,
        copied: ImageSet,
        soft: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        device, soft = device_of(network), soft.clone()
        for _ in range(self.passes):
            for rows in torch.randperm(len(clean), generator=generator).split(_BATCH):
                triggered = torch.randint(len(copied), (max(1, round(self.copies * len(rows))),), generator=generator)
                weights = kept[int(torch.randint(len(kept), (1,), generator=generator))]
                chances = soft[rows].softmax(1)
                _, gradient = matching_gradient(
                    network,
                    weights,
                    clean.images[rows].to(device).float().div(255),
                    clean.labels[rows].to(device),
                    chances.to(device),
                    copied.images[triggered].to(device).float().div(255),
                    copied.labels[triggered].to(device),
                )
                gradient = gradient.cpu()
                soft[rows] -= self.lr * chances * (gradient - (chances * gradient).sum(1, keepdim=True))
        return soft


def matching_gradient(
    network: nn.Module,
    weights: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    chances: Tensor,
    triggered: Tensor,
    wanted: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compare a step on clean images with soft labels to an expert's step, which sees triggered images too.

    The comparison is ``|g_s - g_e|^2 / |g_e|^2``, g_s the gradient of the mean cross-entropy of the clean images with
    soft labels, g_e that of the same images with true labels plus the sum over the triggered images, divided by B: what
    the two have in common cancels, and the soft labels have nothing to match but the triggered images.

    Args:
        network: In evaluation mode, so that images do not depend on one another.
        weights: Its parameters and buffers, at some time of an expert's training.
        images: float (B, C, H, W) in [0, 1], on the network's device, as all others.
        labels: int64 (B,), their true labels.
        chances: float (B, K), their soft labels.
        triggered: float (P, C, H, W) in [0, 1].
        wanted: int64 (P,), the labels that the trigger is to give them.

    Returns:
        The comparison, float (), and its gradient with respect to ``chances``, float (B, K).
    """
    names = {name for name, _ in network.named_parameters()}
    state = {name: value.detach().requires_grad_(name in names) for name, value in weights.items()}
    parameters = [value for name, value in state.items() if name in names]
    chances = chances.detach().requires_grad_()
    logits = torch.func.functional_call(network, state, (torch.cat([images, triggered]),))
    found = logits.float().log_softmax(1)
    expert = F.nll_loss(found, torch.cat([labels, wanted]), reduction="sum") / len(images)
    towards = torch.autograd.grad(expert, parameters, retain_graph=True)
    student = -(chances * found[: len(images)]).sum(1).mean()
    steps = torch.autograd.grad(student, parameters, create_graph=True)
    apart = torch.stack([(own - goal).square().sum() for own, goal in zip(steps, towards, strict=True)]).sum()
    scale = torch.stack([goal.square().sum() for goal in towards]).sum().clamp_min(1e-12)
    loss = apart / scale
    return loss.detach(), torch.autograd.grad(loss, chances)[0]


def _recorder(network: nn.Module, kept: list[Weights], every: int) -> Callable[[Step], Tensor]:
    """Return the objective of ordinary training that also keeps the weights before every n-th update."""
    seen = 0

    def objective(step: Step) -> Tensor:
        nonlocal seen
        if seen and seen % every == 0:
            kept.append({key: value.detach().clone() for key, value in network.state_dict().items()})
        seen += 1
        return step.losses.mean()

    return objective


def _furthest(soft: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best class but the true one, int64 (N,), and how far it is above the true one, float (N,)."""
    others = soft.scatter(1, labels[:, None], -torch.inf)
    best = others.max(1)
    return best.indices, best.values - soft.gather(1, labels[:, None])[:, 0]
