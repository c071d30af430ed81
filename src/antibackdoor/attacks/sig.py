"""SIG: a sinusoid on images of the target class, clean labels (Barni et al., ICIP 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from antibackdoor.attacks.base import CleanLabelAttack
from antibackdoor.errors import ConfigError
from antibackdoor.ops.triggers import sinusoid

__all__ = ["Sig"]


@dataclass(frozen=True)
class Sig(CleanLabelAttack):
    """A horizontal sinusoid. A mirrored image carries the wave with the other sign, so flips train both.

    Attributes:
        delta: Amplitude in training images, in steps of 255.
        test_delta: Amplitude in test images; that of training if None.
        frequency: Cycles over the width.
    """

    delta: float = 40.0
    test_delta: float | None = None
    frequency: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (
            ("delta", self.delta),
            ("test_delta", self.test_delta),
            ("frequency", self.frequency),
        ):
            if value is not None and not 0 < value <= 255:
                raise ConfigError(f"{name}: must be above 0 and at most 255, got {value}")

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add the wave to training images."""
        return sinusoid(images, self.delta / 255, self.frequency)

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add the wave to test images."""
        return sinusoid(images, (self.test_delta or self.delta) / 255, self.frequency)
