"""A suite's scores as a table."""

from __future__ import annotations

from collections.abc import Sequence

from vora_serve.evaluation.files import Scores


def draw_scores(name: str, scores: Scores) -> str:
    """A suite's metrics as a Markdown table, a row for the whole and one for each category."""
    keys = list(scores.metrics)
    lines = [
        "| Suite | Questions | " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "| --- | ---: |" + " ---: |" * len(keys),
        f"| {name} | {scores.questions} | {_cells(scores.metrics, keys)} |",
    ]
    for category, metrics in scores.categories.items():
        lines.append(f"| {name}: {category or 'no category'} | | {_cells(metrics, keys)} |")
    return "\n".join(lines)


def _cells(metrics: dict[str, float], keys: Sequence[str]) -> str:
    return " | ".join(_cell(key, metrics[key]) if key in metrics else "–" for key in keys)


def _cell(key: str, value: float) -> str:
    if key == "perplexity":
        return f"{value:.3f}"
    return f"{value:.0f}" if key == "unclear" else f"{value:.1%}"
