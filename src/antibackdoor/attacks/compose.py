"""Several attacks in one set, each with its own trigger, target and share of the poison."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import yaml
from torch import Tensor

from antibackdoor.attacks.base import Attack
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.ops.per_image import uniform_of
from antibackdoor.registry import Registry

if TYPE_CHECKING:
    from antibackdoor.models import BuildModel
    from antibackdoor.seeds import Seeds
    from antibackdoor.training import Fit
    from antibackdoor.types import ImageSet

__all__ = ["Compose"]

_LOG = logging.getLogger(__name__)
_SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Compose(Attack):
    """Several attacks at once.

    Every row that may be poisoned belongs to one of the attacks, decided by its number and its label alone. A test
    image carries the trigger of one attack that aims at its class, and counts as a success if it is given the target of
    that attack.

    Attributes:
        attacks: Names of the attacks, two at least; the same name may stand there again, with other settings.
        targets: One target for each; ``target`` for all if None.
        shares: Share of the poisoned images of each, all above 0 and adding up to 1; equal shares if None.
        settings: Hyper-parameters, as ``"NUMBER.NAME=VALUE"`` with the attack's number counted from 0, such as
            ``"1.alpha=0.1"``. The value is read as YAML.
        test_part: Number of the one attack whose trigger test images carry; all mixed if None.
        part_seed: Decides which row belongs to which attack.
        parts: The attacks, prepared; filled in by :meth:`prepare`.
        labels: int64 (N,), the labels of the clean set; filled in by :meth:`prepare`.
        weights: float (A,), the share of each attack by the number of images that it may poison; filled in by
            :meth:`prepare`.

    Source:
        Several attackers at once, as BaDLoss (Kiryo et al.) is tested on them. An attack with few candidates (a
        clean-label one) gets the most of those, so that the shares can be kept; where it has too few, the others make
        up for what is missing, and the log says so.
    """

    table: ClassVar[Registry[Attack] | None] = None

    attacks: tuple[str, ...] = ("badnets", "blend")
    targets: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    settings: tuple[str, ...] = ()
    test_part: int | None = None
    part_seed: int = 0
    parts: tuple[Attack, ...] | None = field(default=None, init=False, repr=False, compare=False)
    labels: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    weights: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.attacks)
        if count < 2:
            raise ConfigError(f"attacks: must name two attacks at least, got {count}")
        for name, values in (("targets", self.targets), ("shares", self.shares)):
            if values is not None and len(values) != count:
                raise ConfigError(f"{name}: must be one for each of the {count} attacks, got {len(values)}")
        if self.targets is not None and min(self.targets) < 0:
            raise ConfigError(f"targets: must be class indices of at least 0, got {self.targets}")
        if self.shares is not None and not (min(self.shares) > 0 and abs(sum(self.shares) - 1) <= _SHARE_TOLERANCE):
            raise ConfigError(f"shares: must be above 0 and add up to 1, got {self.shares}")
        if self.test_part is not None and not 0 <= self.test_part < count:
            raise ConfigError(f"test_part: must be in 0..{count - 1}, got {self.test_part}")
        self._built()

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Prepare every attack, each with random streams of its own."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        parts = tuple(
            part.prepare(clean, build_model=build_model, fit=fit, seeds=seeds.child(f"compose {number}"))
            for number, part in enumerate(self._built())
        )
        counts = torch.stack([part.candidates(clean.labels).sum() for part in parts])
        if bool((counts == 0).any()):
            none = self.attacks[int((counts == 0).nonzero()[0])]
            raise PoisonError(f"attack.attacks: {none} may poison no image of this set")
        weights = torch.tensor(self._shares()) / counts
        return ready._ready(parts=parts, labels=clean.labels.clone(), weights=weights)

    def part_of(self, index: Tensor, labels: Tensor) -> Tensor:
        """Return the attack that each training row belongs to.

        Args:
            index: int64 (N,), rows of the set.
            labels: int64 (N,), their original labels.

        Returns:
            int64 (N,), numbers of attacks; -1 where none of them may poison the row.
        """
        able = torch.stack([part.candidates(labels) for part in self._prepared()])
        return self._drawn(able, self._weights(), index, "compose part")

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the trigger of its attack on each training image."""
        return self._each(self.part_of(index, labels), images, index, labels, "stamp")

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Make each image a cover of one of the attacks that have covers."""
        parts = self._prepared()
        able = torch.stack([part.cover_candidates(labels) for part in parts])
        asked = torch.tensor([float(part.cover_count(1000)) for part in parts]) * torch.tensor(self._shares())
        return self._each(self._drawn(able, asked, index, "compose cover"), images, index, labels, "stamp_cover")

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the trigger of one attack that aims at its class on each test image."""
        return self._each(self._tested(index, labels), images, index, labels, "stamp_test")

    def target_of(self, labels: Tensor) -> Tensor:
        """Return the common target for every label.

        Raises:
            PoisonError: The attacks have several targets; see :meth:`test_labels`.
        """
        if self.single_target is None:
            raise PoisonError("several attacks with several targets: a label alone does not decide the target")
        return torch.full_like(labels, self.single_target)

    def test_labels(self, labels: Tensor, index: Tensor) -> Tensor:
        """Return what the attack on each test image wants it to be predicted as."""
        return self._labels(
            self._tested(index, labels), labels, lambda part, own, rows: part.test_labels(own, rows), index
        )

    def relabel(self, labels: Tensor, index: Tensor) -> Tensor:
        """Return the labels that the attack of each row gives it."""
        return self._labels(self.part_of(index, labels), labels, lambda part, own, rows: part.relabel(own, rows), index)

    def candidates(self, labels: Tensor) -> Tensor:
        """Return the images that one of the attacks may poison."""
        return torch.stack([part.candidates(labels) for part in self._prepared()]).any(0)

    def select(self, allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Choose for each attack its share of its own rows, as that attack chooses."""
        if self.labels is None:
            raise PoisonError("several attacks must be prepared before use, since they share out the clean set")
        owner = self.part_of(allowed, self.labels[allowed])
        chosen: list[Tensor] = []
        for number, (part, wanted) in enumerate(zip(self._prepared(), self._quotas(count), strict=True)):
            own = allowed[owner == number]
            if len(own) < wanted:
                _LOG.warning(
                    "%s was to poison %d images and may poison %d of its own; other attacks make up for the rest",
                    self.attacks[number],
                    wanted,
                    len(own),
                )
            chosen.append(part.select(own, min(wanted, len(own)), generator))
        rows = torch.cat(chosen)
        left = allowed[~torch.isin(allowed, rows)]
        more = left[torch.randperm(len(left), generator=generator)[: count - len(rows)]]
        return torch.cat([rows, more])

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return the images that one of the attacks may make a cover."""
        return torch.stack([part.cover_candidates(labels) for part in self._prepared()]).any(0)

    def cover_count(self, count: int) -> int:
        """Return the covers that all attacks together ask for."""
        return sum(part.cover_count(own) for part, own in zip(self._prepared(), self._quotas(count), strict=True))

    def test_candidates(self, labels: Tensor) -> Tensor:
        """Return the test images whose class one of the attacks, or the tested one, aims at."""
        return self._aims(labels).any(0)

    @property
    def single_target(self) -> int | None:
        """The target of all, or None where they differ."""
        targets = {part.single_target for part in (self.parts or self._built())}
        return targets.pop() if len(targets) == 1 else None

    def _built(self) -> tuple[Attack, ...]:
        if self.table is None:
            raise ConfigError("attacks: the table of attacks is not there; import antibackdoor.attacks")
        given: list[dict[str, object]] = [
            {"target": self.target if self.targets is None else self.targets[number]}
            for number in range(len(self.attacks))
        ]
        for setting in self.settings:
            number, name, value = _read_setting(setting, len(self.attacks))
            given[number][name] = value
        parts = []
        for number, name in enumerate(self.attacks):
            if issubclass(self.table.get(name), Compose):
                raise ConfigError(f"attacks: {name} cannot stand in itself")
            parts.append(self.table.build(name, given[number], path=f"settings: {number}"))
        return tuple(parts)

    def _prepared(self) -> tuple[Attack, ...]:
        if self.parts is None:
            raise PoisonError("several attacks must be prepared before use")
        return self.parts

    def _weights(self) -> Tensor:
        if self.weights is None:
            raise PoisonError("several attacks must be prepared before use")
        return self.weights

    def _shares(self) -> tuple[float, ...]:
        return self.shares or (1 / len(self.attacks),) * len(self.attacks)

    def _quotas(self, count: int) -> list[int]:
        """Return how many of ``count`` images each attack gets: rounded so that they add up."""
        ends = [
            int(count * part + 0.5) for part in torch.tensor(self._shares(), dtype=torch.float64).cumsum(0).tolist()
        ]
        return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def _aims(self, labels: Tensor) -> Tensor:
        aims = torch.stack([part.test_candidates(labels) for part in self._prepared()])
        if self.test_part is not None:
            aims[torch.arange(len(aims)) != self.test_part] = False
        return aims

    def _tested(self, index: Tensor, labels: Tensor) -> Tensor:
        return self._drawn(self._aims(labels), torch.ones(len(self.attacks)), index, "compose test")

    def _drawn(self, able: Tensor, weights: Tensor, index: Tensor, name: str) -> Tensor:
        """Draw one attack for each row: bool (A, N), float (A,) -> int64 (N,), -1 where none is able."""
        chances = able * weights.to(able.device)[:, None]
        whole = chances.sum(0)
        draws = uniform_of(index, self.part_seed, name).to(whole)
        passed = (draws * whole)[None] >= chances.cumsum(0)
        # A draw that rounding carries past the last chance falls to the last attack that is able.
        last = len(able) - 1 - (chances.flip(0) > 0).float().argmax(0)
        return torch.where(whole > 0, torch.minimum(passed.sum(0), last), -1)

    def _each(self, owner: Tensor, images: Tensor, index: Tensor, labels: Tensor, name: str) -> Tensor:
        stamped = images.clone()
        for number, part in enumerate(self._prepared()):
            rows = (owner == number).nonzero().squeeze(1)
            if len(rows):
                stamped[rows] = getattr(part, name)(images[rows], index[rows], labels[rows])
        return stamped

    def _labels(
        self, owner: Tensor, labels: Tensor, wanted: Callable[[Attack, Tensor, Tensor], Tensor], index: Tensor
    ) -> Tensor:
        result = labels.clone()
        for number, part in enumerate(self._prepared()):
            rows = (owner == number).nonzero().squeeze(1)
            result[rows] = wanted(part, labels[rows], index[rows])
        return result


def _read_setting(setting: str, count: int) -> tuple[int, str, object]:
    place, equals, value = setting.partition("=")
    number, dot, name = place.partition(".")
    if not (equals and dot and name and number.isdecimal() and int(number) < count):
        raise ConfigError(f"settings: must be NUMBER.NAME=VALUE with a number of 0..{count - 1}, got {setting!r}")
    if name == "target":
        raise ConfigError(f"settings: targets has the targets, got {setting!r}")
    try:
        return int(number), name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"settings: the value cannot be read as YAML, got {setting!r}") from None
