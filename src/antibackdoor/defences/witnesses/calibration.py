"""What the evidence gives where there is no poison: the null behind every p-value.

The figures are those of clean development runs of the bank (``benchmarks/bank``), printed by
``benchmarks/bank/replay.py --null``; none is of a validation run. A Gumbel distribution is fitted by its median and its
95 % or 99 % quantile, whichever gives the longer tail, to the largest value of any part of a class, which is what is
looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["COMBINED", "NULLS", "ORIGIN", "Null"]


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


# By statistic of ``evidence.STATISTICS``; and of their sum (``decide.combined``), since they are not independent. From
# the 153 classes of 19 clean development runs. The largest sum of a clean class was 14.4, of two kinds of garments
# under one label.
NULLS = {
    "turning": Null(-0.046, 0.126),
    "activation": Null(-0.016, 0.044),
    "mixing": Null(-0.003, 0.134),
    "pasting": Null(0.010, 0.063),
    "detail": Null(0.003, 0.058),
    "diversity": Null(0.286, 0.212),
    "misplaced": Null(0.206, 0.075),
    "early": Null(-0.014, 0.303),
    "ahead": Null(0.177, 0.446),
    "picture": Null(2.372, 0.536),
}
COMBINED = Null(4.009, 2.034)
# Of what came from one class (``origin``).
ORIGIN = Null(1.0, 0.7)
