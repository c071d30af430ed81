"""What signals that look inside the network share: layers, and what goes through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.training import evaluating

__all__ = ["head_of", "penultimate", "used", "watched"]


def watched(
    network: Network, layers: Sequence[nn.Module], keep: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> Measure:
    """Return a measure that keeps something of each of these layers.

    Args:
        network: The network.
        layers: Some of its modules; one that a forward pass does not use is left out.
        keep: From a layer, its input and its output to what is kept of every image, (B, anything).

    Returns:
        A measure: what was kept, float32, the layers side by side in the given order.
    """

    def measure(images: Tensor) -> Tensor:
        kept: dict[int, Tensor] = {}

        def hook_of(place: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                kept[place] = keep(layer, inputs[0], output).float().flatten(1)

            return hook

        hooks = [layer.register_forward_hook(hook_of(place)) for place, layer in enumerate(layers)]
        try:
            network.forward(images)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([kept[place] for place in sorted(kept)], 1)

    return measure


@torch.no_grad()
def used(network: Network, layers: Sequence[nn.Module], fits: Callable[[Tensor], bool]) -> list[nn.Module]:
    """Return the layers that a forward pass runs, in the order in which it does, each once.

    A network may hold layers that evaluation does not use, such as a second head, and may register them in any order.

    Args:
        network: The network; two images of its set go through it.
        layers: Some of its modules.
        fits: From what goes into a layer to whether it counts.
    """
    order: list[nn.Module] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        if fits(inputs[0]) and layer not in order:
            order.append(layer)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with evaluating(network.model):
            for images, _ in network.batches(torch.arange(min(2, len(network.data)))):
                network.forward(images)
    finally:
        for hook in hooks:
            hook.remove()
    return order


def head_of(network: Network) -> nn.Linear | None:
    """Return the last linear layer that runs on one vector an image; None where there is no such layer.

    Args:
        network: The network.
    """
    linear = [module for module in network.model.modules() if isinstance(module, nn.Linear)]
    heads = used(network, linear, lambda inputs: inputs.ndim == 2)
    return next((head for head in reversed(heads) if isinstance(head, nn.Linear)), None)


def penultimate(network: Network) -> Measure:
    """Return the measure of the penultimate features: what goes into the last linear layer that runs, (B, D).

    Args:
        network: The network.

    Raises:
        ConfigError: The network runs no linear layer on one vector an image.
    """
    head = head_of(network)
    if head is None:
        raise ConfigError("isolation: a signal that works on features needs a network whose last layer is nn.Linear")
    return watched(network, [head], lambda _, inputs, __: inputs)
