"""What is known of a network by its name: how it is built, where its last layer is, and how it wants its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.models.packaged import LITE0, LITE0_MEAN, LITE0_SIDE, LITE0_STD, efficientnet_lite0
from antibackdoor.models.resnet import PreActResNet, ResNet
from antibackdoor.models.wide_resnet import WideResNet

__all__ = ["MODELS", "TIMM", "Architecture", "Preprocessing", "architecture_of"]

TIMM = "timm:"

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    LITE0: lambda channels, classes: efficientnet_lite0(channels, classes, weights=False),
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
class Preprocessing:
    """How a public network wants its images.

    Attributes:
        side: Height and width in pixels that it was trained at.
        mean: Of its channels, subtracted from pixels in [0, 1].
        std: Divided by.
        fixed: It takes images of one size alone, as most attention networks do.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed: bool = False


@dataclass(frozen=True, eq=False)
class Architecture:
    """A network by its name.

    Attributes:
        name: As it was asked for.
        build: Builds it for images of so many channels and so many classes; with its public weights if the third
            argument is true; for images of that side in pixels where that has to be known (None: its own).
        heads: Prefixes of the names of its last layer's parameters.
        own: How it wants its images; None for a network that has no weights of its own.
    """

    name: str
    build: Callable[[int, int, bool, int | None], nn.Module]
    heads: tuple[str, ...]
    own: Preprocessing | None = None


def architecture_of(name: str) -> Architecture:
    """Return what is known of a network.

    Args:
        name: A key of ``MODELS`` or ``timm:NAME``.

    Raises:
        UnknownNameError: No network has that name.
        ConfigError: It needs a package that does not import.
    """
    if name.startswith(TIMM):
        return _of_timm(name)
    if name not in MODELS:
        raise UnknownNameError("model", name, [*MODELS, "timm:NAME"])
    if name == LITE0:
        own = Preprocessing(LITE0_SIDE, LITE0_MEAN, LITE0_STD)
        return Architecture(name, lambda c, k, public, _: efficientnet_lite0(c, k, weights=public), ("_fc",), own)

    def build(channels: int, num_classes: int, public: bool, _: int | None) -> nn.Module:
        if public:
            raise ConfigError(f"model: {name!r} has no public weights; give --weights FILE, or --model {LITE0}")
        return MODELS[name](channels, num_classes)

    return Architecture(name, build, ("head",))


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision of another build raises the second
        raise ConfigError(
            f"model: timm does not import here ({_first_line(error)}): pip install 'antibackdoor[models]'"
        ) from None
    return timm


def _of_timm(name: str) -> Architecture:
    timm, short = _timm(), name.removeprefix(TIMM)
    base, _, _ = short.partition(".")  # "vit_tiny_patch16_224.augreg_in21k" names one of several sets of weights
    known = timm.list_models()
    if base not in known:
        raise UnknownNameError("timm model", short, known)
    config = timm.get_pretrained_cfg(short)
    if config is None:
        raise ConfigError(f"model: timm has {base!r}, but no weights called {short!r}")
    classifier = config.classifier or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = Preprocessing(config.input_size[-1], config.mean, config.std, bool(config.fixed_input_size))

    def build(channels: int, num_classes: int, public: bool, side: int | None) -> nn.Module:
        sized = {"img_size": side} if own.fixed and side is not None else {}
        try:
            network: nn.Module = timm.create_model(
                short, pretrained=public, num_classes=num_classes, in_chans=channels, **sized
            )
        except Exception as error:  # timm raises whatever the network, or the hub's client, does
            what = "its weights cannot be had" if public else "it cannot be built"
            raise ConfigError(f"model: {name!r}: {what} ({_first_line(error)})") from None
        return network

    return Architecture(name, build, heads, own)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
