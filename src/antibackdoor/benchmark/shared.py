"""What cells share, as bytes: poisoned sets and weights of controls; safetensors with a seal, never a pickle.

Of a poisoned set only the rows that poisoning changed are kept; the rest is the clean set, which a fingerprint names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from antibackdoor.attacks import ATTACKS
from antibackdoor.attacks.appending import with_copies
from antibackdoor.data.sources import Loaded
from antibackdoor.pipeline import Planted, digest
from antibackdoor.registry import parameters_of
from antibackdoor.types import PoisonedSet

__all__ = ["ArtifactStore", "fingerprint", "intact", "pack_planted", "pack_weights", "unpack_planted", "unpack_weights"]

_ABOUT = "about"
_PLANTED, _WEIGHTS = "antibackdoor planted 1", "antibackdoor control 1"


class ArtifactStore(Protocol):
    """Where shared things are kept under their names."""

    def get(self, name: str) -> bytes | None:
        """Return what is kept under a name, or None."""

    def put(self, name: str, blob: bytes) -> None:
        """Keep something."""


def fingerprint(loaded: Loaded) -> str:
    """Return a hash of every pixel and label, so that what was made of other images is not used."""
    parts = [loaded.train] if loaded.test is None else [loaded.train, loaded.test]
    return "-".join(digest(part) for part in parts)


def pack_planted(planted: Planted, loaded: Loaded, fingerprint: str) -> bytes:
    """Return a poisoned set as bytes.

    Args:
        planted: The attack on its data.
        loaded: The clean data it was planted in.
        fingerprint: Their fingerprint.
    """
    train = planted.train
    rows = (train.poison | train.cover).nonzero().squeeze(1)
    tensors = {
        "labels": train.observed.labels,
        "poison": train.poison,
        "cover": train.cover,
        "rows": rows,
        "images": train.observed.images[rows],
    }
    if train.origin is not None:
        tensors["origin"] = train.origin
    if planted.triggered is not None and loaded.test is not None:
        place = {name: row for row, name in enumerate(loaded.test.ids)}
        triggered = planted.triggered.observed
        tensors |= {
            "test_rows": torch.tensor([place[name] for name in triggered.ids], dtype=torch.int64),
            "test_images": triggered.images,
            "test_labels": triggered.labels,
        }
    return _sealed(tensors, {"format": _PLANTED, "of": fingerprint, "attack": parameters_of(planted.attack)})


def unpack_planted(blob: bytes | None, name: str, loaded: Loaded, fingerprint: str) -> Planted | None:
    """Return a poisoned set from its bytes, or None where they are damaged, of another format or of other data.

    Args:
        blob: From :func:`pack_planted`, or None.
        name: Of the attack.
        loaded: The clean data.
        fingerprint: Their fingerprint.

    Returns:
        The set; its attack has its hyper-parameters, but is not prepared to stamp more.
    """
    opened = _opened(blob, _PLANTED, fingerprint)
    if opened is None:
        return None
    tensors, about = opened
    params = about["attack"]
    attack = ATTACKS.build(name, params if isinstance(params, dict) else {})
    origin = tensors.get("origin")
    added = loaded.train if origin is None else with_copies(loaded.train, origin)
    images = added.images.clone()
    images[tensors["rows"]] = tensors["images"]
    observed = dataclasses.replace(added, images=images, labels=tensors["labels"])
    original = added.labels.clone()
    train = PoisonedSet(observed, tensors["poison"], tensors["cover"], original, attack.single_target, origin)
    triggered = None
    if loaded.test is not None and "test_rows" in tensors:
        kept = loaded.test.select(tensors["test_rows"])
        stamped = dataclasses.replace(kept, images=tensors["test_images"], labels=tensors["test_labels"])
        everything = torch.ones(len(kept), dtype=torch.bool)
        triggered = PoisonedSet(stamped, everything, ~everything, kept.labels, attack.single_target)
    return Planted(attack, train, triggered)


def pack_weights(model: nn.Module, fingerprint: str) -> bytes:
    """Return the weights of a control as bytes.

    Args:
        model: The network.
        fingerprint: The fingerprint of the data it was trained on.
    """
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return _sealed(weights, {"format": _WEIGHTS, "of": fingerprint})


def unpack_weights(blob: bytes | None, fingerprint: str) -> dict[str, Tensor] | None:
    """Return weights by name, or None; see :func:`unpack_planted`."""
    opened = _opened(blob, _WEIGHTS, fingerprint)
    return None if opened is None else opened[0]


def intact(blob: bytes | None) -> bool:
    """Say whether bytes are whole, whatever they hold."""
    return _opened(blob) is not None


def _sealed(tensors: Mapping[str, Tensor], about: dict[str, object]) -> bytes:
    plain = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    text = json.dumps({**about, "seal": _seal(plain)}, default=str).encode()
    return save({**plain, _ABOUT: torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def _opened(
    blob: bytes | None, format_: str | None = None, fingerprint: str | None = None
) -> tuple[dict[str, Tensor], dict[str, object]] | None:
    if blob is None:
        return None
    try:
        tensors = load(blob)
        about = json.loads(tensors.pop(_ABOUT).numpy().tobytes())
        expected = {"seal": _seal(tensors), "format": format_ or about["format"], "of": fingerprint or about["of"]}
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
    return (tensors, about) if all(about.get(key) == value for key, value in expected.items()) else None


def _seal(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        total.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        total.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
