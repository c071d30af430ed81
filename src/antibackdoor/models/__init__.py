"""Networks: small ones of our own, any timm name, any ``nn.Module`` of the user's; all take pixels in [0, 1].

To add one, write its class in a file here and give it a line in ``architectures.MODELS``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from antibackdoor.errors import ConfigError
from antibackdoor.models.architectures import MODELS, Architecture, architecture_of
from antibackdoor.models.normalise import Normalised, channel_statistics
from antibackdoor.models.packaged import LITE0
from antibackdoor.models.resized import Resized, size_within
from antibackdoor.models.resnet import PreActResNet, ResNet
from antibackdoor.models.weights import PRETRAINED, load_weights, read_weights
from antibackdoor.models.wide_resnet import WideResNet
from antibackdoor.types import ImageSet, Json

__all__ = [
    "MODELS",
    "PRETRAINED",
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


@dataclass(frozen=True)
class ModelSpec:
    """What is needed to build a network again before its weights are read.

    Attributes:
        name: A key of ``MODELS``, ``timm:NAME``, or "custom" for a network of the user's.
        channels: C.
        height: H.
        width: W.
        num_classes: K.
        input_size: Height and width in pixels that the network sees; None for those of the images.
        input_channels: Channels that the network sees; None for those of the images.
    """

    name: str
    channels: int
    height: int
    width: int
    num_classes: int
    input_size: int | None = None
    input_channels: int | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the fields as plain values."""
        return {
            "name": self.name,
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "num_classes": self.num_classes,
            "input_size": self.input_size,
            "input_channels": self.input_channels,
        }


def choose_model(data: ImageSet) -> str:
    """Return the name of the network that suits the image size: WRN-16-1 up to 64 pixels, ResNet-34 above."""
    _, height, width = data.shape
    return "wrn-16-1" if max(height, width) <= 64 else "resnet-34"


def builder_from(
    model: str | nn.Module | Callable[[], nn.Module],
    data: ImageSet,
    *,
    weights: str | None = None,
    input_size: int | None = None,
) -> tuple[BuildModel, ModelSpec]:
    """Return a function that builds networks for ``data``, and the spec to build them again later.

    Args:
        model: A name, a factory of networks that take float (N, C, H, W) in [0, 1], or one such network, of which
            every build is a copy with its parameters drawn anew where its layers allow (``reset_parameters``).
        data: The training data: gives C, H, W, K and, for a named network that begins anew, the normalisation inside
            it.
        weights: What a named network begins with: "pretrained" for those it is published with, a safetensors file, or
            None for weights drawn anew. With any its last layer is drawn anew. A published network has its own
            normalisation, and three channels.
        input_size: Height and width in pixels that a named network sees, whatever the images have; None for its own
            where it has public weights and begins with weights, or takes no other, and else for that of the images.

    Returns:
        The builder, which takes the generator of the initial weights, and the spec.

    Raises:
        UnknownNameError: No network has that name.
        ConfigError: A package, the weights or the file cannot be had, or do not fit.
    """
    channels, height, width = data.shape
    if not isinstance(model, str):
        if weights is not None or input_size is not None:
            raise ConfigError("weights, input_size: they are for named networks; a network of your own has both inside")
        return _checked(_seeded(_renewed(model)), data), ModelSpec("custom", channels, height, width, data.num_classes)
    name = _named(model, data, weights)
    kind = architecture_of(name)
    spec = _spec_of(name, kind, data, input_size, begins_anew=weights is None)
    if weights is None or kind.own is None:
        mean, std = channel_statistics(data.images)
    else:
        mean, std = torch.tensor(kind.own.mean), torch.tensor(kind.own.std)
    size = None if spec.input_size is None else (spec.input_size, spec.input_size)
    with torch.random.fork_rng(devices=[]):  # Drawing weights must not move the caller's random state.
        pattern = _pattern(kind, spec, weights)  # What does not fit fails here, before any work.

    def build() -> nn.Module:
        if weights is None:
            return Normalised(_body(kind, spec), mean, std, size)
        body = copy.deepcopy(pattern)
        for path, module in body.named_modules():
            if path.startswith(kind.heads) and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        return Normalised(body, mean, std, size)

    # Ours take images of any size.
    return _seeded(build) if kind.own is None else _checked(_seeded(build), data), spec


def rebuild(spec: ModelSpec) -> nn.Module:
    """Build the network of ``spec`` with weights that are still to be loaded.

    Raises:
        ConfigError: The network was the user's own, so only the user can build it.
    """
    if spec.name == "custom":
        raise ConfigError("model: this run trained a network of your own; build it in Python and load the weights")
    ones = torch.ones(spec.input_channels or spec.channels)
    size = None if spec.input_size is None else (spec.input_size, spec.input_size)
    with torch.random.fork_rng(devices=[]):
        return Normalised(_body(architecture_of(spec.name), spec), ones * 0, ones, size)


def _named(model: str, data: ImageSet, weights: str | None) -> str:
    """Return the name of the network where it is left to us."""
    if model != "auto":
        return model
    if weights not in (None, PRETRAINED):
        raise ConfigError("weights: a file says nothing of its network; name it by --model")
    return choose_model(data) if weights is None else LITE0


def _spec_of(name: str, kind: Architecture, data: ImageSet, side: int | None, *, begins_anew: bool) -> ModelSpec:
    """Return the spec of a named network; see :func:`builder_from`."""
    channels, height, width = data.shape
    own = None if begins_anew else kind.own
    if side is None and kind.own is not None and (own is not None or kind.own.fixed):
        side = kind.own.side
    seen = channels if own is None else len(own.mean)
    return ModelSpec(
        name, channels, height, width, data.num_classes, side, input_channels=None if seen == channels else seen
    )


def _body(kind: Architecture, spec: ModelSpec, *, public: bool = False) -> nn.Module:
    return kind.build(spec.input_channels or spec.channels, spec.num_classes, public, spec.input_size)


def _pattern(kind: Architecture, spec: ModelSpec, weights: str | None) -> nn.Module:
    """Return one network with the weights that every build begins with, its last layer aside."""
    body = _body(kind, spec, public=weights == PRETRAINED)
    if weights not in (None, PRETRAINED):
        path = Path(str(weights))
        load_weights(body, kind, read_weights(path), path)
    return body


def _renewed(model: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a factory as it is; of a network one that copies it and draws its parameters anew."""
    if not isinstance(model, nn.Module):
        return model
    pattern = model

    def renewed() -> nn.Module:
        fresh = copy.deepcopy(pattern)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        return fresh

    return renewed


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
