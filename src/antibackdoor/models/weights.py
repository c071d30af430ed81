"""Weights that a network begins with: public ones, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from antibackdoor.errors import ConfigError
from antibackdoor.models.architectures import Architecture

__all__ = ["PRETRAINED", "load_weights", "read_weights"]

# As ``RunConfig.weights``: those that the network is published with.
PRETRAINED = "pretrained"
_BODY = "body."
# A count that nothing is computed from; some files have it and some have not.
_COUNT = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name; a file of this package's runs is one.

    Raises:
        ConfigError: There is none, or it is something else.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"weights: no file at {path}") from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"weights: {path} cannot be read as safetensors ({error}); files of other kinds, such as .pt, may run code"
        ) from None


@torch.no_grad()
def load_weights(body: nn.Module, architecture: Architecture, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a file into a network, all but those of its last layer, which stay as they are.

    Args:
        body: Built by ``architecture``; changed in place.
        architecture: What is known of it.
        tensors: By name, as the network calls them, or with "body." before it as in a run's file.
        path: Where they came from, for messages.

    Raises:
        ConfigError: They are of another network, or not finite.
    """
    if any(name.startswith(_BODY) for name in tensors):
        tensors = {name.removeprefix(_BODY): value for name, value in tensors.items() if name.startswith(_BODY)}
    given = {name: value for name, value in tensors.items() if not _is_aside(name, architecture)}
    own = {name: value for name, value in body.state_dict().items() if not _is_aside(name, architecture)}
    for kind, names in (("has no", own.keys() - given.keys()), ("has an extra", given.keys() - own.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ConfigError(
                f"weights: {path} is not of {architecture.name}: it {kind} {min(names)!r}{more}, of {len(own)} tensors"
            )
    for name, value in own.items():
        if given[name].shape != value.shape:
            raise ConfigError(
                f"weights: {path} is not of {architecture.name} as it is used here: {name!r} has shape "
                f"{tuple(given[name].shape)}, expected {tuple(value.shape)}"
            )
        if not bool(given[name].isfinite().all()):
            raise ConfigError(f"weights: {path} holds values in {name!r} that are infinite or not a number")
        value.copy_(given[name])


def _is_aside(name: str, architecture: Architecture) -> bool:
    return name.endswith(_COUNT) or any(name.startswith(f"{head}.") for head in architecture.heads)
