"""Intervals: known quantiles, coverage of what is true, and detection of what is not one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtest.analysis.stats import (
    difference_interval,
    expanded_tail,
    ratio_interval,
    student_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(2, 4.302653), (3, 3.182446), (5, 2.570582), (9, 2.262157), (30, 2.042272)],
)
def test_student_quantile(freedom: int, quantile: float) -> None:
    """Against the values of any table, and of SciPy."""
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-4)


def test_few_rounds_widen() -> None:
    tails = [expanded_tail(count) for count in (4, 6, 12, 200)]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(0.025, abs=0.001)


def test_ratio_of_rounds() -> None:
    found = ratio_interval([2, 4, 8, 2, 4, 8], [1, 2, 4, 1, 2, 4])
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert not found.contains(1)
    assert math.isnan(ratio_interval([2, 2], [1, 1]).low)
    assert difference_interval([3, 4, 5], [1, 2, 3]).value == 2


def rounds(
    random: np.random.Generator, count: int, ratio: float
) -> tuple[list[float], list[float]]:
    """Two servers on a machine whose mood drifts: noise of 5 % a round, on top of the drift."""
    drift = np.exp(np.cumsum(random.normal(0, 0.1, count)))
    noise = np.exp(random.normal(0, 0.05, (2, count)))
    return list(ratio * drift * noise[0]), list(drift * noise[1])


@pytest.mark.parametrize("count", [6, 10])
def test_coverage(count: int) -> None:
    """The interval holds the truth in about 19 of 20 runs, or it promises too much."""
    random = np.random.default_rng(count)
    held = sum(
        ratio_interval(*rounds(random, count, 1.0), seed=at).contains(1.0) for at in range(400)
    )
    assert 0.91 <= held / 400 <= 0.99


def test_the_pairing_matters_and_a_difference_is_found() -> None:
    random = np.random.default_rng(3)
    found = lost = 0
    for at in range(100):
        first, second = rounds(random, 8, 1.15)
        found += not ratio_interval(first, second, at).contains(1.0)
        lost += not ratio_interval(first, second[::-1], at).contains(1.0)
    assert found >= 90
    assert lost < found / 2
