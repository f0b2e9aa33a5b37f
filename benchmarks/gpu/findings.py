"""Medians, pairs and floors of what the sections measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from benchmarks.gpu.records import Row


@dataclass(frozen=True)
class Floors:
    """Measured rates of the device; None where they were not measured.

    Args:
        flops: operations per second of bfloat16 matrix products.
        fp8_flops: the same in FP8.
        bytes: copied, read and written.
    """

    flops: float | None = None
    fp8_flops: float | None = None
    bytes: float | None = None

    @staticmethod
    def of(rows: Iterable[Row]) -> Floors:
        """The best rate of each kind."""
        best: dict[str, float] = {}
        for row in rows:
            best[row["rate"]] = max(best.get(row["rate"], 0.0), row["per_second"])
        return Floors(best.get("bf16"), best.get("fp8"), best.get("bytes"))

    def seconds(self, row: Row, fp8: bool = False) -> float | None:
        """Least time for a row's operations and bytes.

        Args:
            row: with ``flops``, and ``bytes`` where reading weights and cache counts.
            fp8: whether weights are in FP8: products at that rate, half the bytes.
        """
        rate = self.fp8_flops if fp8 else self.flops
        times = [row["flops"] / rate] if rate else []
        if "bytes" in row and self.bytes:
            times.append(row["bytes"] / (2 if fp8 else 1) / self.bytes)
        return max(times, default=None)


@dataclass(frozen=True)
class Spread:
    """A median and the range around it."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = sorted(values)
        return Spread(median(found), found[0], found[-1])


@dataclass(frozen=True)
class Result:
    """All turns of one measurement of one engine.

    Args:
        engine: its name.
        kind, count: which measurement.
        rows: one a turn.
    """

    engine: str
    kind: str
    count: int
    rows: list[Row]

    def spread(self, key: str) -> Spread:
        """Of a number over the turns."""
        return Spread.of(row[key] for row in self.rows)

    def rate(self, key: str) -> Spread:
        """Of a count per second in the engine."""
        return Spread.of(row[key] / row["engine_s"] for row in self.rows)

    def over(self, other: Result) -> Spread | None:
        """Time in the engine over another engine's, turn by turn; None without a common turn."""
        theirs = {row["turn"]: row["engine_s"] for row in other.rows}
        ratios = [
            row["engine_s"] / theirs[row["turn"]] for row in self.rows if row["turn"] in theirs
        ]
        return Spread.of(ratios) if ratios else None


def results(rows: Iterable[Row]) -> list[Result]:
    """Rows of the engines' sections by engine and measurement, in the order of their coming."""
    found: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if "turn" in row and "engine_s" in row:
            found[row["engine"], row["kind"], row["count"]].append(row)
    return [Result(*key, turns) for key, turns in found.items()]


def baseline(found: Iterable[Result], result: Result, engine: str) -> Result | None:
    """The same measurement of another engine."""
    for other in found:
        if (other.engine, other.kind, other.count) == (engine, result.kind, result.count):
            return other
    return None
