"""Plots of the evidence run, as SVG text; None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib import pyplot as plt

from benchmarks.gpu.findings import Floors, Result
from benchmarks.gpu.records import Row
from loadtest.report.plots import to_svg


def kernel_plot(rows: Sequence[Row], floors: Floors) -> str | None:
    """Each kernel's time with image spans as a multiple of the floor."""
    timed = [row for row in rows if row["kind"] == "time"]
    if not timed or not floors.flops:
        return None
    cases = _unique(f"{row['prompts']} x {row['image']}" for row in timed)
    figure, axes = plt.subplots(figsize=(9, 4))
    for kernel in _unique(row["kernel"] for row in timed):
        mine = {f"{r['prompts']} x {r['image']}": r for r in timed if r["kernel"] == kernel}
        there = [case for case in cases if case in mine]
        times = [mine[case]["spans_s"] / (floors.seconds(mine[case]) or 1.0) for case in there]
        axes.plot([cases.index(case) for case in there], times, "o-", label=kernel)
    axes.set_xticks(range(len(cases)), cases)
    axes.set_xlabel("prompts x image tokens")
    axes.set_ylabel("times the floor")
    axes.set_yscale("log")
    axes.legend()
    return to_svg(figure)


def ttft_plot(found: Sequence[Result], floors: Floors) -> str | None:
    """Time to first token of each engine by images in the prompt, floors as crosses."""
    return _lines(
        found, floors, "ttft", "images in the prompt", "ms in the engine", per_second=False
    )


def decode_plot(found: Sequence[Result], floors: Floors) -> str | None:
    """Tokens per second of each engine by requests, ceilings as crosses."""
    return _lines(found, floors, "decode", "requests", "tokens per second", per_second=True)


def _lines(
    found: Sequence[Result], floors: Floors, kind: str, x: str, y: str, *, per_second: bool
) -> str | None:
    chosen = [result for result in found if result.kind == kind]
    if not chosen:
        return None
    figure, axes = plt.subplots(figsize=(9, 4))
    for engine in _unique(result.engine for result in chosen):
        mine = [result for result in chosen if result.engine == engine]
        counts = [result.count for result in mine]
        measured = [_value(result, result.spread("engine_s").value, per_second) for result in mine]
        [line] = axes.plot(counts, measured, "o-", label=engine)
        least = [floors.seconds(result.rows[0], "FP8" in engine) for result in mine]
        if all(least):
            values = [_value(r, s or 1.0, per_second) for r, s in zip(mine, least, strict=True)]
            axes.plot(counts, values, "x", color=line.get_color())
    axes.set_xlabel(f"{x} (cross: floor or ceiling on paper)")
    axes.set_ylabel(y)
    axes.set_xscale("log", base=2)
    every = sorted({result.count for result in chosen})
    axes.set_xticks(every, [str(count) for count in every])
    axes.set_yscale("log")
    axes.legend()
    return to_svg(figure)


def _value(result: Result, seconds: float, per_second: bool) -> float:
    return float(result.rows[0]["generated"]) / seconds if per_second else seconds * 1e3


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
