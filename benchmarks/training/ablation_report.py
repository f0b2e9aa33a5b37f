"""What the ablation's runs say: a table, and plots like the paper's figures 5 to 7."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Result = dict[str, Any]
Key = tuple[str, str, int]

#: Steps over which losses are averaged before a level counts as reached.
WINDOW = 20
#: Parts of the way from vanilla LoRA's first loss to its last one.
LEVELS = (0.5, 0.8, 0.95)
_COLOURS = {"none": "tab:grey", "last-block": "tab:orange", "block-wise": "tab:blue"}
_LINES = {"causal": "--", "bidirectional": "-"}


def smooth(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Means of the last :data:`WINDOW` values, of fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(values, float)]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - WINDOW)
    means: npt.NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def steps_to(values: Sequence[float], level: float) -> int | None:
    """The first step at which the smoothed loss is at or below a level; None if it never is."""
    curve = smooth(values)
    curve[: WINDOW - 1] = np.inf  # too few steps to average over
    reached = np.nonzero(curve <= level)[0]
    return int(reached[0]) + 1 if len(reached) else None


def levels_of(vanilla: Sequence[float]) -> list[float]:
    """Loss levels of a seed, between vanilla LoRA's first and last smoothed loss."""
    curve = smooth(vanilla)
    first, last = float(curve[WINDOW - 1]), float(curve[-1])
    return [first + part * (last - first) for part in LEVELS]


def relative_steps(results: Sequence[Result]) -> dict[Key, list[list[float | None]]]:
    """For each configuration, by seed, steps to each level divided by vanilla LoRA's."""
    vanilla = {
        (r["rank"], r["seed"]): r["curves"]["lm"]
        for r in results
        if (r["attention"], r["mode"]) == ("causal", "none")
    }
    found: dict[Key, list[list[float | None]]] = {}
    for result in results:
        base = vanilla.get((result["rank"], result["seed"]))
        if base is None:
            continue
        row: list[float | None] = []
        for level in levels_of(base):
            own, other = steps_to(result["curves"]["lm"], level), steps_to(base, level)
            row.append(own / other if own is not None and other is not None else None)
        found.setdefault(_key(result), []).append(row)
    return found


def write_report(results: Sequence[Result], out: Path, machine: str, wanted: int) -> str:
    """Write ``ablation.md`` and its plots into ``out``; returns the table."""
    grouped: dict[Key, list[Result]] = {}
    for result in results:
        grouped.setdefault(_key(result), []).append(result)
    keys = sorted(grouped, key=lambda k: (-k[2], k[0] != "causal", list(_COLOURS).index(k[1])))
    relative = relative_steps(results)
    table = _table(keys, grouped, relative)
    ranks = sorted({key[2] for key in keys}, reverse=True)
    for rank in ranks:
        _plot_losses([k for k in keys if k[2] == rank], grouped, out / f"losses_r{rank}.png")
        _plot_steps([k for k in keys if k[2] == rank], relative, out / f"steps_r{rank}.png")
        _plot_blocks([k for k in keys if k[2] == rank], grouped, out / f"blocks_r{rank}.png")
    text = _text(results, table, machine, wanted, ranks)
    (out / "ablation.md").write_text(text, encoding="utf-8")
    return table + "\n"


def _key(result: Result) -> Key:
    return result["attention"], result["mode"], result["rank"]


def _table(
    keys: Sequence[Key],
    grouped: dict[Key, list[Result]],
    relative: dict[Key, list[list[float | None]]],
) -> str:
    heads = [f"{part:.0%}" for part in LEVELS]
    lines = [
        "| Rank | Attention | Distillation | Seeds | Final loss | "
        + " | ".join(f"Steps to {head}" for head in heads)
        + " | Held-out accuracy | Held-out loss |",
        "| ---: | --- | --- | ---: | ---: |" + " ---: |" * (len(heads) + 2),
    ]
    for key in keys:
        runs = grouped[key]
        final = [float(smooth(run["curves"]["lm"])[-1]) for run in runs]
        accuracy = [100 * run["held_out"][-1]["held_out_accuracy"] for run in runs]
        held_out = [run["held_out"][-1]["held_out_lm"] for run in runs]
        columns = []
        for level in range(len(LEVELS)):
            column = [row[level] for row in relative.get(key, [])]
            columns.append(_ratio(column))
        lines.append(
            f"| {key[2]} | {key[0]} | {key[1]} | {len(runs)} | {_spread(final, '.3f')} | "
            + " | ".join(columns)
            + f" | {_spread(accuracy, '.1f')} % | {_spread(held_out, '.3f')} |"
        )
    return "\n".join(lines)


def _ratio(column: Sequence[float | None]) -> str:
    reached = [value for value in column if value is not None]
    if not reached:
        return "not reached" if column else "–"
    text = f"{100 * float(np.mean(reached)):.0f} %"
    missing = len(column) - len(reached)
    return f"{text} ({missing} of {len(column)} never)" if missing else text


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(float(np.mean(values)), form)
    if len(values) < 2:
        return mean
    return f"{mean} ± {format(float(np.std(values, ddof=1)), form)}"


def _plot_losses(keys: Sequence[Key], grouped: dict[Key, list[Result]], file: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    for key in keys:
        curves = np.stack([smooth(run["curves"]["lm"]) for run in grouped[key]])
        label = f"{key[0]}, {key[1]}"
        style = {"color": _COLOURS[key[1]], "linestyle": _LINES[key[0]]}
        steps = np.arange(1, curves.shape[1] + 1)
        left.plot(steps, curves.mean(0), label=label, **style)
        marks = [line["step"] for line in grouped[key][0]["held_out"]]
        right.plot(
            marks,
            np.mean(
                [[100 * h["held_out_accuracy"] for h in run["held_out"]] for run in grouped[key]], 0
            ),
            marker="o",
            label=label,
            **style,
        )
    left.set(xlabel="step", ylabel="language-modelling loss", title="training loss, mean of seeds")
    right.set(xlabel="step", ylabel="answers right, %", title="held-out accuracy, mean of seeds")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    _save(figure, file)


def _plot_steps(
    keys: Sequence[Key], relative: dict[Key, list[list[float | None]]], file: Path
) -> None:
    figure, panel = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    width = 0.8 / max(1, len(keys))
    for place, key in enumerate(keys):
        rows = relative.get(key, [])
        means = [
            np.mean([r[i] for r in rows if r[i] is not None] or [np.nan])
            for i in range(len(LEVELS))
        ]
        panel.bar(
            np.arange(len(LEVELS)) + place * width,
            100 * np.array(means),
            width,
            label=f"{key[0]}, {key[1]}",
            color=_COLOURS[key[1]],
            hatch="" if key[0] == "bidirectional" else "//",
            edgecolor="white",
        )
    panel.axhline(100, color="black", linewidth=0.8)
    panel.set_xticks(np.arange(len(LEVELS)) + 0.4 - width / 2)
    panel.set_xticklabels([f"{part:.0%} of vanilla LoRA's way" for part in LEVELS])
    panel.set(ylabel="steps needed, % of vanilla LoRA's", title="steps to reach a loss")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    _save(figure, file)


def _plot_blocks(keys: Sequence[Key], grouped: dict[Key, list[Result]], file: Path) -> None:
    chosen = [key for key in keys if key[1] == "block-wise"]
    figure, axes = plt.subplots(1, max(1, len(chosen)), figsize=(11, 4), constrained_layout=True)
    for panel, key in zip(np.atleast_1d(axes), chosen, strict=False):
        names = [n for n in grouped[key][0]["curves"] if n.startswith("aux_")]
        for name in names:
            curves = np.stack([smooth(run["curves"][name]) for run in grouped[key]])
            panel.plot(curves.mean(0), label=f"block {name[4:]}")
        panel.set(xlabel="step", ylabel="1 - cosine similarity", title=f"{key[0]}, block-wise")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _text(
    results: Sequence[Result], table: str, machine: str, wanted: int, ranks: Sequence[int]
) -> str:
    steps = sorted({r["steps"] for r in results})
    batch = sorted({r["batch"] for r in results})
    loads = [r["load"] for r in results]
    cpu = [r["cpu_seconds"] for r in results]
    plots = "\n\n".join(
        f"![Losses and accuracy, rank {rank}](losses_r{rank}.png)\n\n"
        f"![Steps to reach losses, rank {rank}](steps_r{rank}.png)\n\n"
        f"![Distillation loss by block, rank {rank}](blocks_r{rank}.png)"
        for rank in ranks
    )
    return f"""# The ablation in the small

`python -m benchmarks.training.ablation`, on the world of `benchmarks/training/world.py`. {machine}.
{len(results)} of {wanted} runs are in; {"/".join(map(str, steps))} steps of batch
{"/".join(map(str, batch))}; {np.mean(cpu):.0f} CPU seconds a run on average; load average while
they ran {min(loads):.1f} to {max(loads):.1f} (losses do not depend on it).

Spreads are standard deviations over seeds. "Steps to 80 %" are the steps after which the training
loss (mean of {WINDOW} steps) has come 80 % of the way from vanilla LoRA's first loss to its last,
relative to vanilla LoRA (causal, nothing distilled) of the same rank and seed. Held-out accuracy
counts answers that greedy decoding gives exactly.

{table}

{plots}
"""
