"""What a forward pass calls, in order: how a repair finds its layers in any network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from antibackdoor.training import Runtime, evaluating
from antibackdoor.types import ImageSet

__all__ = ["Call", "trace"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module in a forward pass.

    Attributes:
        module: What was called.
        number: Which of its calls this is, from 0: some networks use one module in several places.
        shape: Of its output, batch first.
    """

    module: nn.Module
    number: int
    shape: tuple[int, ...]


@torch.no_grad()
def trace(model: nn.Module, data: ImageSet, runtime: Runtime) -> list[Call]:
    """Return the calls of one forward pass in the order in which they end, those that return no tensor left out.

    Args:
        model: On the device of ``runtime``.
        data: Two of its images go through the network.
        runtime: Device and precision.
    """
    calls: list[Call] = []
    numbers: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: tuple[object, ...], output: object) -> None:
        number = numbers.get(module, 0)
        numbers[module] = number + 1
        if isinstance(output, Tensor):
            calls.append(Call(module, number, tuple(output.shape)))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with evaluating(model), runtime.autocast():
            model(data.images[:2].to(runtime.device).float() / 255)
    finally:
        for hook in hooks:
            hook.remove()
    return calls
