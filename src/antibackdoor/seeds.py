"""One seed, many independent random streams."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Seeds"]


@dataclass(frozen=True)
class Seeds:
    """A source of named generators; asking for one never disturbs another.

    Args:
        seed: Any integer. The same seed and name give the same stream, bit for bit, on a CPU.
    """

    seed: int

    def derive(self, name: str) -> int:
        """Return the 63-bit seed of the stream ``name``."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a fresh generator of the stream ``name`` (such as "poison", "shuffle", "split").

        Args:
            name: Of the stream.
            device: Where it draws; the same stream gives other numbers on another kind of device.
        """
        import torch

        return torch.Generator(device).manual_seed(self.derive(name))

    def child(self, name: str) -> Seeds:
        """Return the seeds of a part that draws streams of its own, such as one attack's surrogate."""
        return Seeds(self.derive(name))
