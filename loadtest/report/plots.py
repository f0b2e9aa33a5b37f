"""Plots of a run, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

_PARTS = (
    "transport",
    "gateway_queue",
    "gateway_overhead",
    "processing",
    "queue",
    "prefill",
)


def to_svg(figure: Any) -> str:
    """A finished figure as SVG, the same bytes for the same figure."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "loadtest"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def ttft_bars(points: Sequence[dict[str, Any]]) -> str:
    """Median time to first token of every server at every closed-loop point, p90 as whiskers."""
    names = list(dict.fromkeys(name for point in points for name in point["servers"]))
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.3 * len(points) * len(names)))
    height = 0.8 / len(names)
    for row, name in enumerate(names):
        spots, values, high = [], [], []
        for at, point in enumerate(points):
            found = point["servers"].get(name, {}).get("ttft_ms")
            if found:
                spots.append(at + row * height)
                values.append(found["p50"])
                high.append(max(0.0, found["p90"] - found["p50"]))
        axes.barh(spots, values, height, xerr=[[0] * len(high), high], label=name)
    axes.set_yticks([at + 0.4 - height / 2 for at in range(len(points))])
    axes.set_yticklabels([point["id"] for point in points])
    axes.invert_yaxis()
    axes.set_xlabel("time to first token, ms (bar: p50, whisker: p90)")
    axes.legend()
    return to_svg(figure)


def ratio_forest(rows: Sequence[dict[str, Any]]) -> str:
    """Measured ratios with intervals beside expected ones.

    Args:
        rows: ``label``, ``value``, ``low``, ``high`` and ``expected``; the last three may be None.
    """
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * len(rows)))
    for at, row in enumerate(rows):
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [at, at], color="tab:blue", linewidth=2)
        axes.plot([row["value"]], [at], "o", color="tab:blue", label="measured" if not at else None)
        if row["expected"] is not None:
            axes.plot([row["expected"]], [at], "x", color="tab:red", markersize=8)
    axes.axvline(1.0, color="gray", linewidth=0.8)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([row["label"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ratio (dot: measured, line: 95 % interval, red cross: expected on paper)")
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.xaxis.set_minor_formatter(matplotlib.ticker.ScalarFormatter())
    return to_svg(figure)


def breakdown_bars(rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    """Where the mean time to first token goes: (label, milliseconds by part)."""
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * len(rows)))
    left = [0.0] * len(rows)
    for part in _PARTS:
        widths = [max(0.0, parts.get(part, 0.0)) for _, parts in rows]
        if any(widths):
            axes.barh(range(len(rows)), widths, left=left, label=part.replace("_", " "))
            left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("mean time to first token, ms")
    axes.legend()
    return to_svg(figure)


def rate_curves(points: Sequence[dict[str, Any]]) -> str:
    """Time to first token against the offered rate, one line a server."""
    names = list(dict.fromkeys(name for point in points for name in point["servers"]))
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in names:
        found = [p for p in points if p["servers"].get(name, {}).get("ttft_ms")]
        found.sort(key=lambda point: float(point["rate"]))
        axes.plot(
            [point["rate"] for point in found],
            [point["servers"][name]["ttft_ms"]["p50"] for point in found],
            marker="o",
            label=name,
        )
    axes.set_xlabel("offered requests per second")
    axes.set_ylabel("TTFT p50, ms")
    axes.set_yscale("log")
    axes.legend()
    return to_svg(figure)
