"""What the evidence gives where there is no poison: the null behind every p-value.

The figures are those of clean development runs of the bank (``benchmarks/bank``), printed by
``benchmarks/bank/replay.py --null``; none is of a validation run. A Gumbel distribution is fitted by its median and
95 % quantile to the largest value of any part of a class, which is what is looked at.
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


# By statistic of ``evidence.STATISTICS``; and of the sum of -log p over them, which are not independent. From the 133
# classes of 17 clean development runs. The largest sum of a clean class was 11.5, of two kinds of garments under one
# label.
NULLS = {
    "turning": Null(-0.016, 0.196),
    "mixing": Null(0.152, 0.089),
    "diversity": Null(0.317, 0.201),
    "misplaced": Null(0.438, 0.097),
    "picture": Null(2.564, 0.478),
}
COMBINED = Null(2.623, 1.570)
