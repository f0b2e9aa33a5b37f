"""The comparison's report: one table, one plot, and what differs by more than the spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.accuracy_cost.systems import SYSTEMS, System
from benchmarks.accuracy_cost.world import ANSWERS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FAMILIES = tuple(ANSWERS)
REPORT, PLOT, NOTES = "README.md", "accuracy-cost.png", "notes.txt"
_COLOURS = dict(zip(FAMILIES, ("tab:red", "tab:blue", "tab:green", "tab:purple"), strict=True))
_MARKS = dict(zip([s.name for s in SYSTEMS], "os^D", strict=True))


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        accuracy: of each system, a result of each seed: ``seed``, ``right``, ``blank``,
            ``image_tokens``.
        latency: of each system, times to first token in seconds, round by round.
        gflop: of each system, operations until the first token, in 10^9.
        settings: of the run.
        machine: what it ran on, a line.
    """

    accuracy: Mapping[str, Sequence[Mapping[str, Any]]]
    latency: Mapping[str, Sequence[Sequence[float]]]
    gflop: Mapping[str, float]
    settings: Mapping[str, Any]
    machine: str


def write_report(results: Results, out: Path) -> str:
    """Write the report and its plot; returns the table. Notes in the folder become part of it."""
    shown = [s for s in SYSTEMS if results.accuracy.get(s.name)]
    table = draw_table(results, shown)
    draw_plot(results, shown, out / PLOT)
    notes = (out / NOTES).read_text(encoding="utf-8") if (out / NOTES).exists() else ""
    (out / REPORT).write_text(_text(results, shown, table, notes), encoding="utf-8")
    return table + "\n"


def draw_table(results: Results, shown: Sequence[System]) -> str:
    """A row for each system, accuracies in per cent with their spread over seeds."""
    lines = [
        "| System | Image tokens | GFLOP to the first token | TTFT, ms | TTFT, ratio | "
        + " | ".join(FAMILIES)
        + " | all |",
        "| --- |" + " ---: |" * (len(FAMILIES) + 5),
    ]
    for system in shown:
        tokens = results.accuracy[system.name][0]["image_tokens"]
        gflop = results.gflop.get(system.name)
        cells = [f"{spread(scores(results, system, family))}" for family in (*FAMILIES, None)]
        lines.append(
            f"| {system.title} | {tokens} | {'–' if gflop is None else f'{gflop:.3f}'} | "
            f"{_ttft(results, system)} | {_ratio(results, system)} | {' | '.join(cells)} |"
        )
    chance = [100 / len(answers) for answers in ANSWERS.values()]
    row = " | ".join(f"{value:.1f}" for value in (*chance, float(np.mean(chance))))
    return "\n".join([*lines, f"| guessing | | | | | {row} |"])


def scores(
    results: Results, system: System, family: str | None, which: str = "right"
) -> list[float]:
    """Accuracies of a system in per cent, seed by seed; of all families alike when None."""
    families = FAMILIES if family is None else (family,)
    return [
        100 * float(np.mean([result[which][name] for name in families]))
        for result in results.accuracy[system.name]
        if result.get(which)
    ]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "–"
    mean = f"{float(np.mean(values)):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {float(np.std(values, ddof=1)):.1f}"


def differs(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Difference of two systems' accuracies, paired by seed, and half its 95 % interval.

    Student's t over the seeds; infinite for a single one.
    """
    pairs = np.asarray(ours) - np.asarray(theirs)
    if len(pairs) < 2:
        return float(pairs.mean()), math.inf
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(pairs), 2.571)
    return float(pairs.mean()), float(quantile * pairs.std(ddof=1) / math.sqrt(len(pairs)))


def repeats(results: Results, shown: Sequence[System]) -> tuple[float, float, str]:
    """Whether another seed of the same code agrees with the others, over all families.

    Returns:
        How far a seed may lie from the mean of the others, at 95 %, by the spread that all systems
        have in common (Student's t); the farthest that one does; and that system's title. In
        percentage points; infinite and 0 where no system has two seeds.
    """
    found = {s.title: scores(results, s, None) for s in shown}
    found = {title: values for title, values in found.items() if len(values) > 1}
    freedom = sum(len(values) - 1 for values in found.values())
    if not freedom:
        return math.inf, 0.0, ""
    squares = sum(float(np.var(values) * len(values)) for values in found.values())
    fewest = min(len(values) for values in found.values())
    quantile = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 6: 2.447, 8: 2.306}.get(freedom, 2.2)
    allowed = quantile * math.sqrt(squares / freedom * (1 + 1 / (fewest - 1)))
    far, title = max(
        (abs(value - (sum(values) - value) / (len(values) - 1)), title)
        for title, values in found.items()
        for value in values
    )
    return allowed, far, title


def _repeats(results: Results, shown: Sequence[System]) -> str:
    allowed, far, title = repeats(results, shown)
    if not math.isfinite(allowed):
        return "With one seed, nothing can be said about another."
    verdict = "agrees" if far <= allowed else "does not agree"
    return (
        f"The same code at another seed {verdict} within the spread: the farthest seed ({title}) "
        f"lies {far:.1f} points from the mean of the other seeds, where {allowed:.1f} are within "
        "the 95 % interval of the spread that all systems have in common."
    )


def _ttft(results: Results, system: System) -> str:
    rounds = results.latency.get(system.name)
    return f"{1000 * _median(rounds):.1f}" if rounds else "–"


def _ratio(results: Results, system: System) -> str:
    """Medians of each round over those of VoRA in the same round: mean and standard deviation."""
    ours, base = results.latency.get(system.name), results.latency.get(SYSTEMS[0].name)
    if not ours or not base:
        return "–"
    ratios = [
        float(np.median(a) / np.median(b)) for a, b in zip(ours, base, strict=False) if a and b
    ]
    deviation = f" ± {np.std(ratios, ddof=1):.2f}" if len(ratios) > 1 else ""
    return f"{np.mean(ratios):.2f}{deviation}"


def _median(rounds: Sequence[Sequence[float]]) -> float:
    return float(np.median([time for times in rounds for time in times]))


def draw_plot(results: Results, shown: Sequence[System], file: Path) -> None:
    """Accuracy by family against time to first token, and against tokens."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), constrained_layout=True)
    for system in shown:
        rounds = results.latency.get(system.name)
        tokens = results.accuracy[system.name][0]["image_tokens"]
        for number, family in enumerate(FAMILIES):
            values = scores(results, system, family)
            error = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            style: dict[str, Any] = {
                "yerr": error, "color": _COLOURS[family], "marker": _MARKS[system.name],
                "linestyle": "none", "capsize": 3,
            }  # fmt: skip
            if rounds:
                left.errorbar(1000 * _median(rounds), np.mean(values), **style)
            # Side by side, since systems of equal tokens would hide each other.
            shift = SYSTEMS.index(system) * 0.4 + number * 0.08
            right.errorbar(tokens + shift, np.mean(values), **style)
    for system in shown:
        right.plot([], [], _MARKS[system.name], color="black", label=system.title)
    for family in FAMILIES:
        right.plot([], [], "o", color=_COLOURS[family], label=family)
    left.set(xlabel="time to first token, ms", ylabel="answers right, %")
    right.set(xlabel="tokens of an image (slightly spread)", ylabel="answers right, %")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _findings(results: Results, shown: Sequence[System]) -> list[str]:
    base = next((s for s in shown if s.name == SYSTEMS[0].name), None)
    lines = []
    for system in shown:
        if base is None or system is base:
            continue
        parts = []
        for family in (*FAMILIES, None):
            ours, theirs = scores(results, system, family), scores(results, base, family)
            if len(ours) != len(theirs):
                continue
            mean, half = differs(ours, theirs)
            sure = "" if abs(mean) > half else " (within the spread)"
            interval = f" ± {half:.1f}" if math.isfinite(half) else ""
            parts.append(f"{family or 'all'} {mean:+.1f}{interval}{sure}")
        lines.append(f"* {system.title} minus {base.title}: {'; '.join(parts)}.")
    return lines


def _text(results: Results, shown: Sequence[System], table: str, notes: str) -> str:
    settings = results.settings
    seeds = sorted({r["seed"] for found in results.accuracy.values() for r in found})
    by_seed = [
        f"| {system.title} | "
        + " | ".join(
            f"{100 * np.mean(list(result['right'].values())):.1f}"
            for result in results.accuracy[system.name]
        )
        + " |"
        for system in shown
    ]
    blanks = [
        f"{system.title} {spread(scores(results, system, None, 'blank'))} %"
        for system in shown
        if scores(results, system, None, "blank")
    ]
    findings = "\n".join(_findings(results, shown))
    blanks_line = "; ".join(blanks) or "not asked"
    head = " | ".join(f"seed {seed}" for seed in seeds)
    said = f"## What it says\n\n{notes.strip()}\n\n" if notes.strip() else ""
    return f"""# Accuracy beside cost in the small world

`python -m benchmarks.accuracy_cost`. {results.machine}.

Every system starts from the same text-only LLM ({settings["llm"]}), and sees the same samples in
the same order for the same number of optimizer steps: {settings["first"]} steps of batch
{settings["batch"]} in the first stage and {settings["second"]} in the second. VoRA's first stage is
LoRA pretraining with block-wise distillation from a small SigLIP, the encoder's aligns a projector
in front of the same SigLIP, which stays frozen; in the second stage the whole LLM trains. The
SigLIP was trained beforehand, on {settings["encoder_images"]} images with labels of every patch for
{settings["encoder_steps"]} steps of 32, which no system's steps count. Rates were not tuned for any
system. Then each checkpoint is served by vLLM behind the gateway, which is asked
{settings["per_family"]} held-out questions of each family. "All" is the mean of the families.
Spreads are standard deviations over {len(seeds)} seed(s) of samples and initialisation.

{said}## Numbers

{table}

![Accuracy against time to first token and tokens]({PLOT})

Differences from VoRA in percentage points, paired by seed, with 95 % intervals (Student's t):

{findings}

All families, seed by seed:

| System | {head} |
| --- |{" ---: |" * len(seeds)}
{chr(10).join(by_seed)}

{_repeats(results, shown)}

With blank images (first seed): {blanks_line}.

Time to first token is measured by the load test through the gateway: one image of 160 x 160 pixels
that no cache knows, one request at a time, all systems in the same run in alternating order; the
ratio is to VoRA's median of the same round. At this size most of that time is not computation: the
operations until the first token, which are counted, not measured, differ more. The systems at
{SYSTEMS[0].image_size} pixels see what VoRA sees; the one with equal tokens sees four times the
pixels.
"""
