"""The attacker's own network, and the cache of everything that attacks optimise: trained once, kept as safetensors.

A prepared attack depends on the clean data, its hyper-parameters, the seed and the version of the code; the hash of all
of these names its file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from antibackdoor.data.cache import default_cache_dir
from antibackdoor.errors import ConfigError, StorageError
from antibackdoor.files import atomic_write_bytes, locked, pack_tensors, unpack_tensors
from antibackdoor.models import BuildModel
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Objective, Phase, Runtime, Step, TrainPlan, mean_loss
from antibackdoor.types import ImageSet

__all__ = ["architecture_of", "artefact_key", "cached", "device_of", "features", "head_of", "train_surrogate"]

# Raise it when an attack's optimisation changes, so that nothing made by the code before is used.
_VERSION = 2


def artefact_key(kind: str, clean: ImageSet, params: Mapping[str, object], seeds: Seeds) -> str:
    """Return the name under which something optimised is kept.

    Args:
        kind: What it is, such as "surrogate" or "trojan".
        clean: The clean data it is made from; every pixel and label counts.
        params: Everything else that decides it.
        seeds: The streams it draws from.
    """
    digest = hashlib.sha256()
    plain = {key: str(value) for key, value in sorted(params.items())}
    digest.update(json.dumps([_VERSION, kind, seeds.seed, clean.shape, list(clean.classes), plain]).encode())
    digest.update(clean.labels.contiguous().numpy().tobytes())
    for part in clean.images.split(4096):
        digest.update(part.contiguous().numpy().tobytes())
    return f"{kind}-{digest.hexdigest()[:32]}"


def architecture_of(build_model: BuildModel) -> str:
    """Return a description of the networks that ``build_model`` makes, for :func:`artefact_key`.

    Args:
        build_model: Builds a fresh network.

    Returns:
        Its layers with their settings, and the shape of every weight; nothing of their values.
    """
    model = build_model(torch.Generator().manual_seed(0))
    return f"{model!r} {[(name, tuple(value.shape)) for name, value in model.state_dict().items()]}"


def cached(key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the cache, or make them and keep them.

    Args:
        key: From :func:`artefact_key`.
        make: Makes them: tensors by name.

    Raises:
        StorageError: The cache cannot be written.
    """
    path = default_cache_dir() / "attacks" / f"{key}.safetensors"
    found = _read(path, key)
    if found is not None:
        return found
    with locked(path.with_suffix(".lock")):  # one process at a time makes an entry; a killed one loses its lock
        found = _read(path, key)  # Another process may have made it while this one waited.
        return _store(path, key, make()) if found is None else found


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    with contextlib.suppress(OSError, StorageError):  # A damaged entry is made again.
        header, tensors = unpack_tensors(path.read_bytes())
        return tensors if header.get("key") == key else None
    return None


def _store(path: Path, key: str, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in made.items()
    }
    header = {"format": "antibackdoor attack 2", "key": key}
    atomic_write_bytes(path, pack_tensors(tensors, header), what="the cache ")
    return tensors


def train_surrogate(
    clean: ImageSet,
    *,
    build_model: BuildModel,
    fit: Fit,
    seeds: Seeds,
    epochs: int = 10,
    robust: float = 0.0,
    name: str = "surrogate",
) -> nn.Module:
    """Train the attacker's network on clean data, or take it from the cache.

    Args:
        clean: The clean training data.
        build_model: Builds it; the attacker is taken to know the architecture, never the victim's seed.
        fit: The training loop.
        seeds: The attack's own streams.
        epochs: Passes over the data.
        robust: Bound (l-infinity, steps of 255) of the adversarial training; 0 for ordinary training.
        name: Names the phase and the stream of initial weights, for attacks with several.

    Returns:
        The network in evaluation mode with frozen weights, on the device that ``fit`` trains on.
    """
    model = build_model(seeds.generator(f"{name} init"))
    params: dict[str, object] = {"epochs": epochs, "model": architecture_of(build_model)}
    if robust:
        params["robust"], name = robust, f"robust {name}"
    key = artefact_key(name, clean, params, seeds)

    def make() -> dict[str, Tensor]:
        objective = _adversarial(model, robust / 255, fit.runtime) if robust else mean_loss
        fit(model, clean, Phase(name, TrainPlan(epochs=epochs)), objective=objective)
        return dict(model.state_dict())

    model.load_state_dict(cached(key, make))
    # Where and how training leaves it, so that a network from the cache computes the same bits.
    return fit.runtime.place(model).eval().requires_grad_(False)


def _adversarial(model: nn.Module, bound: float, runtime: Runtime) -> Objective:
    """Return the objective of fast adversarial training (Wong et al., ICLR 2020): one signed step from a random start.

    The starts are drawn from the global stream, which the training loop seeds for every epoch.
    """

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        with runtime.autocast():
            logits = model(images)
        return ce(logits, labels).mean()

    def objective(step: Step) -> Tensor:
        start = torch.empty_like(step.images).uniform_(-bound, bound).requires_grad_()
        (slope,) = torch.autograd.grad(loss_of(step.images + start, step.labels), [start])
        moved = (start.detach() + 1.25 * bound * slope.sign()).clamp(-bound, bound)
        return loss_of((step.images + moved).clamp(0, 1), step.labels)

    return objective


def device_of(model: nn.Module) -> torch.device:
    """Return the device a network's weights are on."""
    return next(model.parameters()).device


@contextlib.contextmanager
def _captured(layer: nn.Module, store: list[Tensor]) -> Iterator[None]:
    hook = layer.register_forward_pre_hook(lambda _, inputs: store.append(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the penultimate features: what goes into the network's last linear layer.

    Args:
        model: Any network whose last layer is ``nn.Linear``.
        images: float (N, C, H, W) in [0, 1], on the network's device; gradients flow through.

    Returns:
        float (N, D).

    Raises:
        ConfigError: The network has no linear layer.
    """
    store: list[Tensor] = []
    with _captured(head_of(model), store):
        model(images)
    return store[-1].flatten(1)


def head_of(model: nn.Module) -> nn.Linear:
    """Return the network's last linear layer; its weight is (K, D).

    Raises:
        ConfigError: The network has none.
    """
    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise ConfigError("model: an attack that works on features needs a network whose last layer is nn.Linear")
    return heads[-1]
