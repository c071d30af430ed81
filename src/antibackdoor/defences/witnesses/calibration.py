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
    "turning": Null(-0.061, 0.166),
    "activation": Null(-0.019, 0.051),
    "mixing": Null(0.048, 0.121),
    "pasting": Null(0.034, 0.051),
    "detail": Null(0.015, 0.072),
    "diversity": Null(0.292, 0.198),
    "misplaced": Null(0.208, 0.074),
    "early": Null(0.09, 0.28),
    "ahead": Null(0.58, 0.33),
    "picture": Null(2.498, 0.497),
}
COMBINED = Null(2.974, 1.798)
