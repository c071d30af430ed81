"""What the attacks that optimise a trigger against a surrogate share: batches, descent, places, checks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from antibackdoor.attacks.surrogate import device_of
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.types import ImageSet

__all__ = [
    "check_patch",
    "check_positive",
    "check_shape",
    "descend",
    "draw",
    "on_grid",
    "patch_corner",
    "rows_of",
]


def check_positive(**values: float | None) -> None:
    """Check settings that must be above 0 where they are given.

    Args:
        **values: By the name of the setting.

    Raises:
        ConfigError: One is zero, negative or not a number.
    """
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name}: must be a finite number above 0, got {value}")


def check_patch(size: int | None, margin: int | None, alpha: float) -> None:
    """Check the settings of an opaque or faint patch.

    Args:
        size: Side in pixels, or None.
        margin: Pixels to the edges, or None.
        alpha: Opacity, above 0 and at most 1.

    Raises:
        ConfigError: One is outside its range.
    """
    if size is not None and size < 1:
        raise ConfigError(f"size: must be at least 1 pixel, got {size}")
    if margin is not None and margin < 0:
        raise ConfigError(f"margin: must be at least 0 pixels, got {margin}")
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha: must be above 0 and at most 1, got {alpha}")


def check_shape(images: Tensor, shape: tuple[int, ...]) -> None:
    """Check that images are of the shape that a trigger was made for.

    Args:
        images: (N, C, H, W).
        shape: C, H, W.

    Raises:
        PoisonError: They are not.
    """
    if tuple(images.shape[1:]) != tuple(shape):
        given, wanted = ("x".join(map(str, dims)) for dims in (images.shape[1:], shape))
        raise PoisonError(f"the trigger was prepared for images of {wanted} (CxHxW), but these are {given}")


def patch_corner(height: int, width: int, size: int, margin: int) -> tuple[int, int]:
    """Return the first row and column of a square patch at the lower right.

    Args:
        height: H.
        width: W.
        size: Side of the patch in pixels.
        margin: Pixels between the patch and the edges.

    Raises:
        PoisonError: It does not fit.
    """
    if size + margin > min(height, width):
        raise PoisonError(
            f"a patch of {size} pixels with a margin of {margin} is larger than the pictures ({height}x{width})"
        )
    return height - size - margin, width - size - margin


def rows_of(mask: Tensor, what: str) -> Tensor:
    """Return the rows that are True, int64 (M,).

    Args:
        mask: bool (N,).
        what: What these images are, for the message.

    Raises:
        PoisonError: There are none.
    """
    rows = mask.nonzero().squeeze(1)
    if len(rows) == 0:
        raise PoisonError(f"the trigger cannot be optimised: the set has no images of {what}")
    return rows


def draw(clean: ImageSet, rows: Tensor, count: int, generator: torch.Generator, model: nn.Module) -> Tensor:
    """Return images drawn with replacement, as the network takes them.

    Args:
        clean: The set.
        rows: int64 (M,), what to draw from.
        count: Images wanted.
        generator: Source of the draws.
        model: Gives the device.

    Returns:
        float (count, C, H, W) in [0, 1].
    """
    chosen = rows[torch.randint(len(rows), (count,), generator=generator)]
    return clean.images[chosen].to(device_of(model)).float().div(255)


def descend(
    variable: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    project: Callable[[Tensor], Tensor] = lambda value: value,
) -> Tensor:
    """Minimise a loss by Adam under a cosine rate that falls to zero.

    Args:
        variable: float, the start; not changed.
        loss_of: Variable -> scalar; draws its own batch.
        steps: Updates.
        lr: First learning rate, in units of the variable.
        project: Called on the variable after every update.

    Returns:
        The variable after the last update, without gradient.

    Raises:
        PoisonError: The loss or the variable stopped being finite.
    """
    variable = variable.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([variable], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        # Only the variable needs a gradient; with backward() a network that is not frozen would gather some too.
        (variable.grad,) = torch.autograd.grad(loss_of(variable), [variable])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            variable.copy_(project(variable))
    if not bool(torch.isfinite(variable).all()):
        raise PoisonError("the optimisation of the trigger did not stay finite; lower its learning rate")
    return variable.detach()


def on_grid(pixels: Tensor) -> Tensor:
    """Return pixels (or differences of pixels) rounded to whole steps of 1/255, so that storing loses nothing."""
    return pixels.mul(255).round().div(255)
