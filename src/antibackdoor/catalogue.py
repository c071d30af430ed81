"""What there is to choose from, and what this machine offers."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch

from antibackdoor.attacks import ATTACKS
from antibackdoor.data.cache import default_cache_dir
from antibackdoor.defences import DEFENCES
from antibackdoor.errors import AntiBackdoorError, ConfigError
from antibackdoor.isolation import SIGNALS
from antibackdoor.models import MODELS
from antibackdoor.models.packaged import LITE0, LITE0_PACKAGES
from antibackdoor.pipeline import versions
from antibackdoor.registry import Registry
from antibackdoor.training import Runtime

__all__ = ["FAMILIES", "describe", "diagnose"]

_EXTRAS = {
    "cleanlab": "cleanlab",
    "timm": "models",
    "datasets": "hub",
    "pillow_heif": "heif",
    "pyarrow": "tables",
    "ray": "ray",
    "uvicorn": "review",
}


def _registered(registry: Registry[object]) -> list[tuple[str, str]]:
    return [(name, (registry.get(name).__doc__ or "").strip().splitlines()[0]) for name in registry]


def _models() -> list[tuple[str, str]]:
    lines = []
    for name, build in MODELS.items():
        try:
            count = sum(parameter.numel() for parameter in build(3, 10).parameters())
        except ConfigError:
            lines.append((name, f"not here: pip install {LITE0_PACKAGES}; takes --pretrained"))
            continue
        text = f"{count / 1e6:.2f} million parameters at 3 channels, 10 classes"
        lines.append((name, f"{text}; takes --pretrained" if name == LITE0 else text))
    timm = "any timm model, such as timm:vit_tiny_patch16_224; takes --pretrained (pip install 'antibackdoor[models]')"
    return [*lines, ("timm:NAME", timm)]


def _datasets() -> list[tuple[str, str]]:
    return [
        ("embedded", "Fashion-MNIST's 10,000 test images, 8,000 to train and 2,000 to test, shipped with the package"),
        ("FOLDER", "one subfolder a class, or train/ and test/ with one subfolder a class each"),
        ("FILE.csv", "a table with the columns path and label, perhaps id and split; .parquet too (docs/data.md)"),
        ("*.parquet", "images as bytes and labels, or a folder of such; also what Hugging Face's save_to_disk wrote"),
        ("*.tar", "WebDataset shards: NAME.jpg with NAME.cls or NAME.json; a folder of such, or 'set-{000..009}.tar'"),
        ("FILE.npz", "images uint8 (N, H, W[, C]), labels int (N,), perhaps test_images, test_labels, classes"),
        ("hub:NAME", "a data set of the Hugging Face hub (pip install 'antibackdoor[hub]')"),
    ]


FAMILIES: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "attacks": lambda: _registered(ATTACKS),  # type: ignore[arg-type]
    "datasets": _datasets,
    "defences": lambda: _registered(DEFENCES),  # type: ignore[arg-type]
    "models": _models,
    "signals": lambda: _registered(SIGNALS),  # type: ignore[arg-type]
}


def describe(family: str) -> list[tuple[str, str]]:
    """Return (name, one line) of every member of a family in ``FAMILIES``."""
    return FAMILIES[family]()


def diagnose() -> list[tuple[str, str]]:
    """Return (what, finding) lines about versions, device, precision, cache and extras."""
    lines = list(versions().items())
    runtime = Runtime.create()
    about = runtime.describe()
    lines.append(("device", f"{runtime.device}: {about['name']}"))
    lines.append(("precision", runtime.reason))
    lines.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"))
    for name in ("cuda", "mps"):
        try:
            Runtime.create(name)
            lines.append((name, "there"))
        except AntiBackdoorError as error:
            lines.append((name, str(error)))
    lines.append(("cache", str(default_cache_dir())))
    for module, extra in _EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        lines.append((module, "installed" if found else f"not installed: pip install 'antibackdoor[{extra}]'"))
    return lines
