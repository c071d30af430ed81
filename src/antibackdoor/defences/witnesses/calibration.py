"""What the evidence gives where there is no poison: the null behind every p-value.

The figures are those of clean development runs of the bank (``benchmarks/bank``), printed by
``benchmarks/bank/replay.py --null``; none is of a validation run. A Gumbel distribution is fitted by its
mean and spread to the largest value of any part of a class, which is what is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["COMBINED", "NULLS", "Null"]


@dataclass(frozen=True)
class Null:
    """A Gumbel distribution of the largest value of a class.

    Attributes:
        place: Its location.
        scale: Its scale, above 0.
    """

    place: float
    scale: float

    def p_value(self, statistic: float) -> float:
        """Return how probable at least this value is in a clean class, above 0 and at most 1."""
        x = (statistic - self.place) / self.scale
        # 1 - exp(-exp(-x)), without cancellation where it is small.
        return max(-math.expm1(-math.exp(min(-x, 700.0))), 1e-300)


# By statistic of ``evidence.STATISTICS``; and of the sum of -log p over them, which are not independent. From 100 of
# the 104 classes of 12 clean development runs; the command prints the same for all 104 to within .002 (.02 for the
# sum). The largest sum of a clean class was 10.5; poisoned classes whose trigger the detector had learned to 97 % and
# more had 16.6 to 26.6 where they were alone, and 10.1 beside another attack.
NULLS = {
    "learning": Null(2.0, 0.6),
    "turning": Null(0.058, 0.144),
    "mixing": Null(0.142, 0.077),
    "diversity": Null(0.298, 0.197),
    "misplaced": Null(0.361, 0.152),
    "picture": Null(2.026, 0.805),
}
COMBINED = Null(2.486, 1.609)
