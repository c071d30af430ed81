"""Numbers from other people's papers and pages, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """A number from somebody else's paper or page; never mixed with measured ones.

    Attributes:
        data: Data set, in small letters and digits.
        model: Network, as this package names it.
        attack: Attack, likewise.
        rate: Share of poisoned images, 0..1.
        defence: Defence, likewise.
        ca: Clean accuracy, 0..1.
        asr: Attack success rate, 0..1.
        source: Where it stands, and what is different there.
    """

    data: str
    model: str
    attack: str
    rate: float
    defence: str
    ca: float
    asr: float
    source: str


_ABL = "github.com/bboylyg/ABL, README{}; its code leaves the target class out of clean accuracy"
_NAD = "github.com/bboylyg/NAD, README; one trained network, 5 % of the training images trusted"
_BENCH = "BackdoorBench leaderboard, backdoorbench.github.io, PreAct-ResNet-18"
_BENCH_COLUMNS = (
    *(("cifar10", rate) for rate in (0.1, 0.05, 0.01, 0.005, 0.001)),
    *(("gtsrb", rate) for rate in (0.1, 0.01)),
)
_BENCH_NONE: Mapping[str, tuple[tuple[float, float] | None, ...]] = {
    "badnets": ((91.3, 95.0), (92.6, 88.7), (93.1, 74.7), (93.8, 50.1), (93.6, 1.2), (97.2, 59.3), (98.3, 50.3)),
    "blend": ((93.5, 99.9), (93.7, 99.6), (93.8, 94.9), (93.7, 93.3), (93.8, 56.1), (98.6, 100), (98.8, 95.7)),
    "cl": ((84.6, 99.9), (93.3, 99.5), (93.8, 90.6), (93.7, 18.6), (93.8, 4.7), None, None),
    "lf": ((93.2, 99.3), (93.3, 98.0), (93.6, 86.5), (93.8, 75.1), (93.5, 12.7), (98.1, 99.3), (98.3, 95.7)),
    "sig": ((84.5, 98.3), (93.6, 97.1), (93.8, 83.4), (93.8, 82.4), (93.7, 41.3), None, None),
    "ssba": ((92.9, 97.9), (93.3, 94.9), (93.4, 73.4), (93.4, 35.7), (93.9, 1.6), (98.0, 99.6), (98.7, 94.5)),
    "trojan": ((93.4, 100), (93.8, 100), (93.6, 100), (93.7, 99.9), (94.1, 98.1), (98.6, 100), (98.2, 100)),
}
PUBLISHED = (
    Published("cifar10", "wrn-16-1", "badnets", 0.1, "abl-code", 0.8611, 0.0304, _ABL.format("")),
    Published("cifar10", "wrn-16-1", "badnets", 0.1, "none", 0.9324, 1.0, _ABL.format(", with augmentation")),
    Published("cifar10", "wrn-16-1", "badnets", 0.1, "abl-code", 0.9180, 0.0016, _ABL.format(", with augmentation")),
    Published("cifar10", "wrn-16-1", "badnets", 0.1, "none", 0.8565, 1.0, _NAD),
    Published("cifar10", "wrn-16-1", "badnets", 0.1, "nad", 0.8212, 0.0357, _NAD),
    *(
        Published(data, "preact-resnet-18", attack, rate, "none", pair[0] / 100, pair[1] / 100, _BENCH)
        for attack, pairs in _BENCH_NONE.items()
        for (data, rate), pair in zip(_BENCH_COLUMNS, pairs, strict=True)
        if pair is not None
    ),
)
