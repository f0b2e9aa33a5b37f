"""Plots of a run's ``metrics.jsonl``: losses, distillation by block, gradient norm, throughput."""

import json
from pathlib import Path
from typing import Any

from model_plugin import ConfigError
from vora_serve.training.metrics import METRICS_FILE

_PANELS = (
    ("language-modelling loss", ("lm", "held_out_lm")),
    ("distillation loss by block", ("aux_",)),
    ("gradient norm", ("grad_norm",)),
    ("tokens per second", ("tokens_per_second",)),
)


def read_metrics(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines of ``metrics.jsonl`` by stage.

    Raises:
        ConfigError: there are none.
    """
    file = run / METRICS_FILE
    if not file.is_file():
        raise ConfigError(f"{run} has no {METRICS_FILE}.")
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        stages.setdefault(data["stage"], []).append(data)
    if not stages:
        raise ConfigError(f"{file} is empty.")
    return stages


def plot_run(run: Path, out: Path) -> None:
    """Draw a run.

    Args:
        run: its folder.
        out: file to write (PNG, SVG or PDF, by its name).

    Raises:
        ConfigError: there are no metrics, or ``out`` cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    stages = read_metrics(run)
    figure = plt.figure(figsize=(11, 7), constrained_layout=True)
    recorded = {key for lines in stages.values() for key in lines[-1]}
    # A fine-tune distils nothing.
    panels = [each for each in _PANELS if any(key.startswith(each[1]) for key in recorded)]
    for number, (title, prefixes) in enumerate(panels, 1):
        panel = figure.add_subplot(2, 2, number)
        for stage, lines in stages.items():
            keys = [k for k in lines[-1] if k.startswith(prefixes)]
            for key in keys:
                points = [(line["step"], line[key]) for line in lines if key in line]
                label = stage if len(keys) == 1 else f"{stage} {key}"
                panel.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=7)
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out} cannot be written: {error}.") from error
    finally:
        plt.close(figure)
