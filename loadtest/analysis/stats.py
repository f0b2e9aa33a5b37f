"""Paired comparison with bootstrap confidence intervals.

Rounds are the units that are resampled: requests within a round share the machine's mood and are
not independent. With the few rounds that one can afford, the plain percentile interval is too
narrow; it is widened as T. Hesterberg's "expanded percentile interval" does (What Teachers Should
Know About the Bootstrap, 2015): its tails are those of Student's t, with n/(n-1) made good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    Args:
        value: the estimate.
        low, high: bounds; NaN with fewer than three rounds.
        rounds: how many it rests on.
    """

    value: float
    low: float
    high: float
    rounds: int

    def contains(self, value: float) -> bool:
        """Whether the interval holds ``value``; without bounds, it holds anything."""
        return not (self.low > value or self.high < value)

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for bounds that are not known."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


def ratio_interval(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Ratio first/second of paired rounds: the geometric mean of the rounds' own ratios.

    Args:
        first, second: one positive value per round, in the same order.
        seed: of the resampling.
    """
    logs = np.log(np.asarray(first, float)) - np.log(np.asarray(second, float))
    value, low, high = _mean_interval(logs, seed)
    return Interval(math.exp(value), math.exp(low), math.exp(high), len(logs))


def difference_interval(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Mean of first - second over paired rounds."""
    gaps = np.asarray(first, float) - np.asarray(second, float)
    return Interval(*_mean_interval(gaps, seed), len(gaps))


def _mean_interval(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    count = len(values)
    mean = float(values.mean())
    if count < 3:
        return mean, math.nan, math.nan
    random = np.random.default_rng(seed)
    means = values[random.integers(count, size=(_RESAMPLES, count))].mean(axis=1)
    tail = expanded_tail(count)
    low, high = np.quantile(means, [tail, 1 - tail])
    return mean, float(low), float(high)


def expanded_tail(count: int, confidence: float = CONFIDENCE) -> float:
    """Share of resamples to cut off on each side, for an interval over ``count`` rounds."""
    wide = math.sqrt(count / (count - 1)) * student_quantile((1 + confidence) / 2, count - 1)
    return NormalDist().cdf(-wide)


@lru_cache
def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t above the middle, by bisection on its integrated density."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    scale /= math.sqrt(freedom * math.pi)

    def below(limit: float) -> float:
        grid = np.linspace(0, limit, 2001)
        density = scale * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
        return 0.5 + float(np.trapezoid(density, grid))

    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < probability else (low, middle)
    return (low + high) / 2
