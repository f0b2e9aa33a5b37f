"""Numbers as the report shows them."""

from __future__ import annotations

from benchmarks.gpu.findings import Spread


def beside_floor(seconds: float, floor: float | None, unit: float) -> list[str]:
    """A floor in units of which a second has so many, and how many times it a time is."""
    if floor is None:
        return ["–", "–"]
    return [digits(floor * unit), digits(seconds / floor)]


def with_range(found: Spread, factor: float = 1.0) -> str:
    """``median (low–high)``."""
    low, high = (digits(value * factor) for value in (found.low, found.high))
    return f"{digits(found.value * factor)} ({low}–{high})"


def micro(seconds: float) -> str:
    """Microseconds."""
    return digits(seconds * 1e6)


def digits(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
