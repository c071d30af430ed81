"""Networks: small ones of our own, any timm name, any ``nn.Module`` of the user's; all take pixels in [0, 1].

To add one, write its class in a file here and give it a line in ``MODELS``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.models.normalise import Normalised, channel_statistics
from antibackdoor.models.resized import Resized, size_within
from antibackdoor.models.resnet import PreActResNet, ResNet
from antibackdoor.models.wide_resnet import WideResNet
from antibackdoor.types import ImageSet, Json

__all__ = [
    "MODELS",
    "BuildModel",
    "ModelSpec",
    "Normalised",
    "PreActResNet",
    "ResNet",
    "Resized",
    "WideResNet",
    "builder_from",
    "channel_statistics",
    "choose_model",
    "rebuild",
    "size_within",
]

BuildModel: TypeAlias = Callable[[torch.Generator], nn.Module]

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "preact-resnet-18": lambda channels, classes: PreActResNet((2, 2, 2, 2), channels, classes),
    "resnet-18": lambda channels, classes: ResNet((2, 2, 2, 2), channels, classes),
    "resnet-34": lambda channels, classes: ResNet((3, 4, 6, 3), channels, classes),
    "wrn-10-1": lambda channels, classes: WideResNet(10, 1, channels, classes),
    "wrn-16-1": lambda channels, classes: WideResNet(16, 1, channels, classes),
    "wrn-16-2": lambda channels, classes: WideResNet(16, 2, channels, classes),
    "wrn-16-4": lambda channels, classes: WideResNet(16, 4, channels, classes),
    "wrn-28-10": lambda channels, classes: WideResNet(28, 10, channels, classes),
}


@dataclass(frozen=True)
class ModelSpec:
    """What is needed to build a network again before its weights are read.

    Attributes:
        name: A key of ``MODELS``, ``timm:NAME``, or "custom" for a network of the user's.
        channels: C.
        height: H.
        width: W.
        num_classes: K.
    """

    name: str
    channels: int
    height: int
    width: int
    num_classes: int

    def to_json(self) -> dict[str, Json]:
        """Return the fields as plain values."""
        return {
            "name": self.name,
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "num_classes": self.num_classes,
        }


def choose_model(data: ImageSet) -> str:
    """Return the name of the network that suits the image size: WRN-16-1 up to 64 pixels, ResNet-34 above."""
    _, height, width = data.shape
    return "wrn-16-1" if max(height, width) <= 64 else "resnet-34"


def _body(name: str, channels: int, num_classes: int) -> nn.Module:
    if name.startswith("timm:"):
        try:
            import timm
        except ImportError as error:
            raise ConfigError(
                f"model: {name!r} needs timm, which does not import here ({error}): pip install 'antibackdoor[models]'"
            ) from None
        short = name.removeprefix("timm:")
        if short not in timm.list_models():
            raise UnknownNameError("timm model", short, timm.list_models())
        built: nn.Module = timm.create_model(short, num_classes=num_classes, in_chans=channels)
        return built
    if name not in MODELS:
        raise UnknownNameError("model", name, [*MODELS, "timm:NAME"])
    return MODELS[name](channels, num_classes)


def builder_from(model: str | nn.Module | Callable[[], nn.Module], data: ImageSet) -> tuple[BuildModel, ModelSpec]:
    """Return a function that builds fresh networks for ``data``, and the spec to build them again later.

    Args:
        model: A name, a factory of networks that take float (N, C, H, W) in [0, 1], or one such network, of which
            every build is a copy with its parameters drawn anew where its layers allow (``reset_parameters``).
        data: The training data: gives C, H, W, K and, for a named network, the normalisation inside it.

    Returns:
        The builder, which takes the generator of the initial weights, and the spec.

    Raises:
        UnknownNameError: No network has that name.
    """
    channels, height, width = data.shape
    mean, std = channel_statistics(data.images)

    def spec(name: str) -> ModelSpec:
        return ModelSpec(name, channels, height, width, data.num_classes)

    if isinstance(model, str):
        name = choose_model(data) if model == "auto" else model
        with torch.random.fork_rng(devices=[]):  # Drawing weights must not move the caller's random state.
            _body(name, channels, data.num_classes)  # An unknown name fails here, before any work.

        def build() -> nn.Module:
            return Normalised(_body(name, channels, data.num_classes), mean, std)

        return _seeded(build), spec(name)
    if isinstance(model, nn.Module):
        pattern = model

        def renewed() -> nn.Module:
            fresh = copy.deepcopy(pattern)
            for module in fresh.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
            return fresh

        return _checked(_seeded(renewed), data), spec("custom")
    return _checked(_seeded(model), data), spec("custom")


def rebuild(spec: ModelSpec) -> nn.Module:
    """Build the network of ``spec`` with weights that are still to be loaded.

    Raises:
        ConfigError: The network was the user's own, so only the user can build it.
    """
    if spec.name == "custom":
        raise ConfigError("model: this run trained a network of your own; build it in Python and load the weights")
    ones = torch.ones(spec.channels)
    with torch.random.fork_rng(devices=[]):
        return Normalised(_body(spec.name, spec.channels, spec.num_classes), ones * 0, ones)


def _checked(build: BuildModel, data: ImageSet) -> BuildModel:
    """Try a network of the user's on two images, so that what does not fit is said before any work.

    Raises:
        ConfigError: It cannot take the images, or does not give one logit a class.
    """
    model = build(torch.Generator()).cpu().eval()
    sample = data.images[:2].float() / 255
    try:
        with torch.no_grad():
            logits = model(sample)
    except Exception as error:
        raise ConfigError(f"model: it cannot take float images of shape {tuple(sample.shape)}: {error}") from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    expected = (len(sample), data.num_classes)
    if shape != expected:
        raise ConfigError(f"model: for {len(sample)} images it gives {shape}, expected logits of shape {expected}")
    return build


def _seeded(build: Callable[[], nn.Module]) -> BuildModel:
    """Let the generator decide the initial weights and leave the global random state as it was."""

    def seeded(generator: torch.Generator) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            return build()

    return seeded
