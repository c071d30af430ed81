"""The optimiser of a plan, and the moving average of the weights that may take their place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from antibackdoor.errors import ConfigError
from antibackdoor.training.plan import TrainPlan

__all__ = ["Average", "all_parameters", "optimizer_for", "set_rate"]

# In a parameter group: what the learning rate of the plan is multiplied by.
_FACTOR = "rate_factor"


def optimizer_for(model: nn.Module, plan: TrainPlan, *, fused: bool | None = None) -> torch.optim.Optimizer:
    """Return a new optimiser for a network.

    Args:
        model: On its device.
        plan: Optimiser, rates, decay.
        fused: One kernel in place of several, on CUDA.

    Raises:
        ConfigError: Rates differ for the last linear layer, and there is none.
    """
    if plan.optimizer == "sgd" and plan.backbone_lr == 1:
        groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
    else:
        groups = _groups(model, plan)
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(groups, plan.lr, weight_decay=plan.weight_decay, fused=fused)
    return torch.optim.SGD(groups, plan.lr, plan.momentum, 0, plan.weight_decay, plan.nesterov, fused=fused)


def _groups(model: nn.Module, plan: TrainPlan) -> list[dict[str, object]]:
    """Return the parameters by rate, and for AdamW by whether they decay, in the order of the network."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear and plan.backbone_lr != 1:
        raise ConfigError("train.backbone_lr: the network has no linear layer, so all layers are alike; set it to 1")
    last = {id(parameter) for parameter in linear[-1].parameters()} if linear else set()
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter in model.parameters():
        factor = 1.0 if id(parameter) in last else plan.backbone_lr
        # Biases, and scales and shifts of normalisations, are vectors.
        decays = plan.optimizer == "sgd" or parameter.ndim > 1
        groups.setdefault((factor, decays), []).append(parameter)
    return [
        {"params": members, _FACTOR: factor} | ({} if decays else {"weight_decay": 0.0})
        for (factor, decays), members in groups.items()
    ]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the learning rate of the plan, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_FACTOR, 1.0)


def all_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of all groups, in their order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class Average:
    """An exponential moving average of a network's weights and statistics.

    Args:
        model: The network; on its device.
        decay: Above 0 and below 1; at update n no more than (1 + n) / (10 + n).

    Source:
        Polyak and Juditsky, 1992; the rise of the decay is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self._count = 0
        self._values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in what the network holds now, after an update of its weights."""
        self._count += 1
        decay = min(self._decay, (1 + self._count) / (10 + self._count))
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                self._values[name].lerp_(value, 1 - decay)
            else:
                self._values[name].copy_(value)

    def install(self) -> None:
        """Put the average into the network."""
        self._model.load_state_dict(self._values)

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Yield the state by name, for a checkpoint."""
        yield "count", torch.tensor(self._count)
        yield from ((f"value/{name}", value) for name, value in self._values.items())

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the state from a checkpoint; nothing where it has none."""
        if "count" not in tensors:
            return
        self._count = int(tensors["count"])
        for name, value in self._values.items():
            value.copy_(tensors[f"value/{name}"])
