"""Success rates with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Rate:
    """A success rate with its confidence interval, all within [0, 1]."""

    mean: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.num})"


def wilson(successes: int, num: int, confidence: float = 0.95) -> Rate:
    """Wilson score interval of ``successes`` out of ``num`` (also valid at 0 % and 100 %).

    Source: Wilson 1927; the interval recommended for small n by Brown, Cai, DasGupta 2001.
    Raises ValueError unless 0 <= successes <= num, num > 0 and 0 < confidence < 1.
    """
    if num <= 0 or not 0 <= successes <= num:
        raise ValueError(f"{successes} successes of {num} episodes: impossible")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; must lie between 0 and 1")
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    p = successes / num
    centre = (p + z2 / (2 * num)) / (1 + z2 / num)
    half = math.sqrt(z2 * (p * (1 - p) / num + z2 / (4 * num**2))) / (1 + z2 / num)
    # at the ends the interval touches 0 or 1 exactly, which rounding would miss
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == num else min(1.0, centre + half)
    return Rate(p, low, high, num)
