"""What some defences are given beside the observed data: trusted images, or the rate of poison.

A defence that needs nothing more is handed nothing. Trusted images are never taken from the observed data: in an
experiment they are copies of training images from before the poisoning, on data of a person's own they come from
``data.trusted``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from antibackdoor.config import OWN_TRAIN, RunConfig
from antibackdoor.data.sources import load_beside
from antibackdoor.defences.base import Defence, RatedDefence, TrustedDefence
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.progress import SILENT, Progress
from antibackdoor.seeds import Seeds
from antibackdoor.types import ImageSet, PoisonedSet

__all__ = ["Resolved", "check_requirements", "resolve_requirements"]


@dataclass(frozen=True, eq=False)
class Resolved:
    """A defence with what it was given.

    Attributes:
        defence: Ready to run.
        trusted: The trusted images, or None.
        evidence: What it was given in words, one sentence each, for the record.
    """

    defence: Defence
    trusted: ImageSet | None = None
    evidence: tuple[str, ...] = ()


def check_requirements(defence: Defence, config: RunConfig, *, scan_only: bool) -> None:
    """Refuse what cannot work, before any data are read.

    Args:
        defence: As built from the configuration.
        config: Of the run.
        scan_only: Nothing but a scan is wanted.

    Raises:
        ConfigError: The defence cannot scan, or nothing says where its trusted images or the rate come from.
    """
    name = config.defence.name
    if scan_only and not defence.can_scan:
        raise ConfigError(f"defence.name: {name} repairs a network and names no images, so it cannot scan; use train")
    if defence.needs_trusted and config.data.trusted is None and not _known_clean(config):
        raise ConfigError(
            f"defence.name: {name} needs trusted images; give --set data.trusted=DIR, a folder or .npz of images that "
            "are known to be clean"
        )
    if isinstance(defence, RatedDefence) and defence.rate is None and not _known_clean(config):
        raise ConfigError(
            f"defence.rate: {name} must be told which share of the images is poison; give --set defence.rate=0.01, or "
            "whatever it is"
        )


def resolve_requirements(
    defence: Defence,
    config: RunConfig,
    clean: ImageSet,
    *,
    truth: PoisonedSet | None,
    held_out: Tensor | None,
    seeds: Seeds,
    progress: Progress = SILENT,
) -> Resolved:
    """Give a defence what it needs beside the observed data, and say so.

    Args:
        defence: As built from the configuration, and checked by :func:`check_requirements`.
        config: Of the run.
        clean: The training images before any attack.
        truth: What was planted, or None.
        held_out: bool (N,), images that no training may see; those that an attack added stand behind the clean ones.
        seeds: The run's; the stream "trusted" draws the images.
        progress: Shows the reading.

    Returns:
        The defence itself where it needs nothing.

    Raises:
        DataError: The trusted images cannot be read, or a class has none.
    """
    if isinstance(defence, TrustedDefence):
        return _with_trusted(defence, config, clean, held_out, seeds, progress)
    if isinstance(defence, RatedDefence):
        return _with_rate(defence, truth)
    return Resolved(defence)


def _known_clean(config: RunConfig) -> bool:
    """Say whether the images are known to be clean before the attack: then its share of poison is the true one."""
    return config.attack is not None or config.data.trusted == OWN_TRAIN


def _with_trusted(
    defence: TrustedDefence,
    config: RunConfig,
    clean: ImageSet,
    held_out: Tensor | None,
    seeds: Seeds,
    progress: Progress,
) -> Resolved:
    named = config.data.trusted
    if named is None or named == OWN_TRAIN:
        trusted = _drawn(clean, defence.trusted_share, held_out, seeds.generator("trusted"))
        source = f"{100 * defence.trusted_share:g} % of the training images as they were before any attack"
    else:
        trusted = load_beside(named, clean, skip_bad=config.data.skip_bad, progress=progress)
        source = f"those of {named}"
    counts = torch.bincount(trusted.labels, minlength=clean.num_classes)
    if not bool(counts.all()):
        missing = clean.classes[int(counts.argmin())]
        raise DataError(f"{trusted.name}: no trusted image of class {missing!r}; at least one of each class is needed")
    return Resolved(
        defence.with_trusted(trusted), trusted, (f"This defence was given {len(trusted):,} trusted images, {source}.",)
    )


def _with_rate(defence: RatedDefence, truth: PoisonedSet | None) -> Resolved:
    if defence.rate is not None:
        return Resolved(
            defence, evidence=(f"This defence was told that {100 * defence.rate:.3g} % of the images is poison.",)
        )
    rate = 0.0 if truth is None else float(truth.poison.double().mean())
    sentence = f"This defence was given the true rate of poison, {100 * rate:.3g} % of the images."
    return Resolved(defence.with_rate(rate), evidence=(sentence,))


def _drawn(clean: ImageSet, share: float, held_out: Tensor | None, generator: torch.Generator) -> ImageSet:
    """Return copies of a share of every class, one image at least, none of them held out."""
    usable = torch.ones(len(clean), dtype=torch.bool) if held_out is None else ~held_out[: len(clean)]
    rows = []
    for label in range(clean.num_classes):
        members = (clean.labels == label).nonzero().squeeze(1)
        count = max(1, round(share * len(members)))
        members = members[usable[members]]
        rows.append(members[torch.randperm(len(members), generator=generator)[:count]])
    drawn = clean.select(torch.cat(rows).sort().values)
    return dataclasses.replace(drawn, ids=tuple(f"trusted/{name}" for name in drawn.ids), name="trusted images")
