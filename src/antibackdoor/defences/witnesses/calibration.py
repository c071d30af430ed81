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
# the 153 classes of 19 clean development runs. The largest sum of a clean class was 18.3, of two kinds of garments
# under one label: by the fit, a scale of 2.042, it would be accused at 1 %, so that the scale is 2.25.
NULLS = {
    "turning": Null(-0.046, 0.126),
    "activation": Null(-0.016, 0.043),
    "mixing": Null(0.018, 0.122),
    "pasting": Null(0.023, 0.060),
    "detail": Null(0.008, 0.060),
    "diversity": Null(0.283, 0.206),
    "misplaced": Null(0.206, 0.075),
    "early": Null(-0.043, 0.302),
    "ahead": Null(0.229, 0.408),
    "picture": Null(2.252, 0.572),
    "style": Null(2.790, 0.693),
}
COMBINED = Null(4.567, 2.250)
# Of what came from one class (``origin``): 0 in most clean classes, so that no quantile but the last says anything:
# the largest of 120, 4.1 (traffic signs), has a p-value of 1/60.
ORIGIN = Null(0.0, 1.0)
