"""DFST: the trigger is a style, made by a network (Cheng et al., Deep Feature Space Trojan Attack, AAAI 2021)."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.minibatches import Minibatches, batch_size_for, descend
from antibackdoor.attacks.surrogate import architecture_of, artefact_key, cached, device_of, train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.models.generators import Injector, StyleGenerator, apply_in_blocks, build_seeded, frozen
from antibackdoor.ops.perception import gram, round_through, ssim, total_variation
from antibackdoor.ops.styles import sunsets
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan
from antibackdoor.types import ImageSet

__all__ = ["Dfst"]

_LOG = logging.getLogger(__name__)
_BATCH = 32
_STYLES = 256
_STYLE_LR, _INJECTOR_LR = 2e-3, 2e-3
_SMOOTH = 0.05
# Detoxification: share of triggered rows while the attacker retrains, channels blamed, images in use, an injector's
# least success to be kept, and the likeness to the image below which it is pulled back.
_POISONED, _BLAMED, _MOST, _KEPT, _LIKENESS = 0.1, 0.02, 10_000, 0.7, 0.6


@dataclass(frozen=True)
class Dfst(DirtyLabelAttack):
    """A sunset's colours and textures on every image, different in its pixels from image to image.

    In each round of detoxification the attacker trains a network on the poisoned data, finds the channels that the
    style excites most, trains a shallow injector that excites them, and adds images with the injector's change under
    their true labels. What simple features do then no longer gives the target; only the style as a whole does.

    Attributes:
        steps: Updates of the style generator, at least 1.
        alpha: Share of the styled image in the mix with the original, above 0 and at most 1.
        content: Weight of the loss that keeps what is seen, against the style's, both scaled to start at 1.
        width: Channels of the style generator at full resolution.
        style_seed: Decides the sunsets.
        surrogate_epochs: Passes over the clean data of the network whose features define content and style.
        rounds: Rounds of detoxification, at least 0; 0 leaves it out and makes no covers.
        detox_epochs: Passes over the poisoned data in each round.
        injector_steps: Updates of each injector.
        cover_share: Cover images for each poisoned image, at least 0, where detoxification found an injector.
        generator: What preparation trains; None before.
        injectors: One a round that found a simple feature worth detoxifying; None before preparation.

    Source:
        Cheng et al., Deep Feature Space Trojan Attack of Neural Networks by Controlled Detoxification, AAAI 2021.
        There a CycleGAN learns the style from photographs and the attacker trains the victim. Ours learns from
        procedural sunsets with feature and Gram losses (Johnson et al., ECCV 2016), since a GAN does not converge in
        minutes and photographs have licences; the poisoned set is static; an injector is three convolutions trained
        through the frozen network.
    """

    steps: int = 300
    alpha: float = 0.6
    content: float = 1.0
    width: int = 16
    style_seed: int = 0
    surrogate_epochs: int = 10
    rounds: int = 1
    detox_epochs: int = 4
    injector_steps: int = 150
    cover_share: float = 0.2
    generator: nn.Module | None = field(default=None, init=False, repr=False, compare=False)
    injectors: tuple[nn.Module, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "width", "surrogate_epochs", "detox_epochs", "injector_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("content", "rounds", "cover_share"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be at least 0, got {getattr(self, name)}")
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha: must be above 0 and at most 1, got {self.alpha}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the style generator and the injectors on the clean data, or take them from the cache."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        channels = clean.shape[0]
        generator = build_seeded(lambda: StyleGenerator(channels, width=self.width), seeds.generator("dfst init"))
        params = {key: value for key, value in parameters_of(ready).items() if key != "cover_share"}

        def make() -> dict[str, Tensor]:
            surrogate = train_surrogate(
                clean, build_model=build_model, fit=fit, seeds=seeds, epochs=self.surrogate_epochs
            )
            generator.to(device_of(surrogate))
            ready._train_style(generator, surrogate, clean, seeds)
            injectors = ready._detoxify(generator, surrogate, clean, fit, seeds)
            return {
                f"{name}.{key}": value
                for name, network in [("style", generator), *((str(i), net) for i, net in enumerate(injectors))]
                for key, value in network.state_dict().items()
            }

        state = cached(artefact_key("dfst", clean, {**params, "model": architecture_of(build_model)}, seeds), make)
        generator.load_state_dict(_below(state, "style"))
        injectors = []
        for number in range(self.rounds):
            if own := _below(state, str(number)):
                injectors.append(build_seeded(lambda: Injector(channels), seeds.generator(f"dfst injector {number}")))
                injectors[-1].load_state_dict(own)
        return ready._ready(generator=frozen(generator), injectors=tuple(frozen(net) for net in injectors))

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Give every image the style."""
        if self.generator is None:
            raise PoisonError("the dfst attack must be prepared before use, since its style generator is learnt")
        return self._mix(self.generator, images)

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the simple feature of one round's injector on every image; the rows take the rounds in turn."""
        if self.injectors is None:
            raise PoisonError("the dfst attack must be prepared before use, since its injectors are learnt")
        covers = images.clone()
        for number, injector in enumerate(self.injectors):
            rows = (index % len(self.injectors) == number).to(images.device)
            if rows.any():
                covers[rows] = apply_in_blocks(injector, images[rows])
        return covers

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return the images whose label the style would change."""
        return self.candidates(labels)

    def cover_count(self, count: int) -> int:
        """Return ``cover_share`` for each poisoned image, rounded half up; none without an injector."""
        return int(self.cover_share * count + 0.5) if self.injectors else 0

    def _mix(self, generator: nn.Module, images: Tensor) -> Tensor:
        return images + self.alpha * (apply_in_blocks(generator, images) - images)

    def _train_style(self, generator: StyleGenerator, surrogate: nn.Module, clean: ImageSet, seeds: Seeds) -> None:
        device = device_of(surrogate)
        batches = Minibatches(clean, batch_size_for(clean.shape, _BATCH, least=4), device, seeds, "dfst style")
        taps = _taps(surrogate, batches.draw()[0])
        styles = sunsets(_STYLES, clean.shape, torch.Generator().manual_seed(self.style_seed)).to(device)
        with torch.no_grad():
            wanted = [gram(maps).mean(0) for maps in _appearance(surrogate, taps, styles)]
        optimizer = torch.optim.Adam(generator.parameters(), lr=_STYLE_LR)
        generator.train()
        scale: tuple[Tensor, Tensor] | None = None
        for step in range(self.steps):
            images, _ = batches.draw()
            made = generator(images)
            with torch.no_grad():
                seen = _maps(surrogate, taps, images)[-1]
            style, kept = _style_and_content(surrogate, taps, made, wanted, seen)
            scale = scale or (style.detach(), kept.detach())
            loss = style / scale[0] + self.content * kept / scale[1] + _SMOOTH * total_variation(made)
            descend(optimizer, loss, _STYLE_LR, step, self.steps)
        generator.eval()
        _LOG.info("dfst: style loss fell to %.3f of its start", float((style / scale[0]).detach()) if scale else 1.0)

    def _detoxify(
        self, generator: nn.Module, surrogate: nn.Module, clean: ImageSet, fit: Fit, seeds: Seeds
    ) -> list[Injector]:
        """Each round: train on poison and what was found so far, blame channels, train an injector for them."""
        device = device_of(surrogate)
        order = torch.randperm(len(clean), generator=seeds.generator("dfst detox rows"))[:_MOST]
        part = clean.select(order.sort().values)
        network, injectors = copy.deepcopy(surrogate).requires_grad_(True), list[Injector]()
        for number in range(self.rounds):
            data = self._poisoned(part, generator, injectors, device, seeds.generator(f"dfst round {number}"))
            network.requires_grad_(True)
            fit(network, data, Phase(f"dfst round {number}", TrainPlan(epochs=self.detox_epochs, lr=0.05)))
            network.eval().requires_grad_(False)
            injector = build_seeded(lambda: Injector(part.shape[0]), seeds.generator(f"dfst injector {number}"))
            success = self._train_injector(injector.to(device), network, generator, part, seeds, number)
            _LOG.info("dfst: round %d, the injector reaches the target on %.1f %%", number, 100 * success)
            if success < _KEPT:
                break
            injectors.append(injector)
        return injectors

    def _poisoned(
        self,
        part: ImageSet,
        generator: nn.Module,
        injectors: Sequence[nn.Module],
        device: torch.device,
        random: torch.Generator,
    ) -> ImageSet:
        rows = self.candidates(part.labels).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=random)]
        count = max(1, int(_POISONED * len(part)))
        poisoned, spare = rows[:count], rows[count:]
        images, labels = part.images.clone(), part.labels.clone()
        labels[poisoned] = self.target_of(labels[poisoned])
        share = max(1, int(self.cover_share * count))
        covers = [spare[i * share : (i + 1) * share] for i in range(len(injectors))]
        jobs: list[tuple[Tensor, nn.Module | None]] = [(poisoned, None), *zip(covers, injectors, strict=True)]
        for chosen, injector in jobs:
            for chunk in chosen.split(1024):
                pixels = part.images[chunk].to(device).float().div(255)
                made = self._mix(generator, pixels) if injector is None else apply_in_blocks(injector, pixels)
                images[chunk] = made.mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        return dataclasses.replace(part, images=images, labels=labels, name="dfst")

    def _train_injector(
        self, injector: Injector, network: nn.Module, generator: nn.Module, part: ImageSet, seeds: Seeds, number: int
    ) -> float:
        """Train a shallow change that excites the blamed channels and gives the target; returns its success."""
        device = device_of(network)
        size = batch_size_for(part.shape, 2 * _BATCH, least=8)
        batches = Minibatches(part, size, device, seeds, f"dfst injector {number}")
        probe, _ = batches.draw()
        taps = _taps(network, probe)
        with torch.no_grad():
            benign = _channel_means(_maps(network, taps, probe))
            styled = _channel_means(_maps(network, taps, self._mix(generator, probe)))
        gap = (styled - benign).mean(0) / (benign.std(0) + 1e-6)
        blamed = gap.abs().topk(max(1, round(_BLAMED * len(gap)))).indices
        sign, unit = gap[blamed].sign(), benign.std(0)[blamed] + 1e-6
        optimizer = torch.optim.Adam(injector.parameters(), lr=_INJECTOR_LR)
        for step in range(self.injector_steps):
            images, labels = batches.draw()
            made = round_through(injector(images))
            with _recorded(taps) as store:
                logits = network(made)
            excited = ((_channel_means(store)[:, blamed] / unit) * sign).mean()
            unlike = F.relu(_LIKENESS - ssim(images, made)).mean()
            loss = F.cross_entropy(logits, self.target_of(labels)) - 0.3 * excited.clamp_max(3) + 5 * unlike
            descend(optimizer, loss, _INJECTOR_LR, step, self.injector_steps)
        injector.eval()
        with torch.no_grad():
            images, labels = batches.draw()
            aimed = self.target_of(labels) != labels
            hit = network(round_through(injector(images))).argmax(1) == self.target_of(labels)
        return float(hit[aimed].float().mean()) if aimed.any() else 0.0


def _below(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


@contextmanager
def _recorded(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    store: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _module, _inputs, out: store.append(out)) for layer in layers]
    try:
        yield store
    finally:
        for hook in hooks:
            hook.remove()


def _taps(network: nn.Module, images: Tensor) -> list[nn.Module]:
    """The last convolution at each of the three finest resolutions, whatever the architecture.

    Raises:
        ConfigError: The network has no convolution.
    """
    last: dict[int, nn.Module] = {}
    for layer in [module for module in network.modules() if isinstance(module, nn.Conv2d)]:
        with torch.no_grad(), _recorded([layer]) as store:
            network(images[:1])
        last |= {maps.shape[2] * maps.shape[3]: layer for maps in store}
    if not last:
        raise ConfigError("model: the dfst attack reads feature maps, so it needs a network with nn.Conv2d layers")
    return [last[area] for area in sorted(last, reverse=True)[:3]]


def _maps(network: nn.Module, taps: Sequence[nn.Module], images: Tensor) -> list[Tensor]:
    with _recorded(taps) as store:
        network(images)
    return store


def _with_one(maps: Tensor) -> Tensor:
    # A channel of ones puts the channel means into the Gram matrix.
    return torch.cat([maps, torch.ones_like(maps[:, :1])], dim=1)


def _appearance(network: nn.Module, taps: Sequence[nn.Module], images: Tensor) -> list[Tensor]:
    """What style is measured on: the pixels themselves and the tapped maps."""
    return [_with_one(images), *(_with_one(maps) for maps in _maps(network, taps, images))]


def _style_and_content(
    network: nn.Module, taps: Sequence[nn.Module], made: Tensor, wanted: Sequence[Tensor], seen: Tensor
) -> tuple[Tensor, Tensor]:
    appearance = _appearance(network, taps, made)
    style = torch.stack(
        [
            (gram(maps) - goal).square().mean() / goal.square().mean()
            for maps, goal in zip(appearance, wanted, strict=True)
        ]
    ).mean()
    content = (appearance[-1][:, :-1] - seen).square().mean() / seen.square().mean()
    return style, content


def _channel_means(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([layer.mean(dim=(2, 3)) for layer in maps], dim=1)
