"""The report on a training run of the demo: what was done, how losses fell, what came out."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from transformers import __version__ as transformers_version

from model_plugin import VoRAForCausalLM, VoRAProcessor
from vora_serve.accuracy import Row, draw_table, summarise
from vora_serve.demo.evaluate import evaluate_items
from vora_serve.demo.recipe import DemoRecipe
from vora_serve.world.suite import SUITE_SEED, build_suite

matplotlib.use("Agg")
from matplotlib import pyplot as plt

REPORT_FILES = ("report.md", "report.json", "losses.png", "recipe.yaml")
_TITLES = {
    "text": "LLM, text alone",
    "teacher": "teacher",
    "pretrain": "LoRA pretraining",
}


def write_report(recipe: DemoRecipe, run: Path, checkpoint: Path) -> list[Row]:
    """Put a trained model to the held-out questions and write what came out beside its weights.

    Args:
        recipe: the run's.
        run: the run's folder.
        checkpoint: the exported model; gets ``report.md``, ``report.json``, ``losses.png`` and
            ``recipe.yaml``.

    Returns:
        Accuracy by group of questions.
    """
    model = VoRAForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    processor = VoRAProcessor.from_pretrained(checkpoint)
    items = build_suite(recipe.held_out)
    right = evaluate_items(model, processor, items)
    blank = evaluate_items(model, processor, [item.blank() for item in items])
    rows = summarise([(item.group, item.chance) for item in items], right, blank)
    times = json.loads((run / "times.json").read_text(encoding="utf-8"))
    metrics = {
        stage: read_metrics(run / "log" / stage / "metrics.jsonl") for stage in _titles(recipe)
    }
    plot_losses(metrics, _titles(recipe), checkpoint / "losses.png")
    teacher = json.loads((run / "teacher.json").read_text(encoding="utf-8"))
    result = {
        "suite_seed": SUITE_SEED,
        "groups": [asdict(row) for row in rows],
        "seconds": times,
        "teacher": teacher,
    }
    (checkpoint / "report.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plain = recipe.model_dump(mode="json")
    (checkpoint / "recipe.yaml").write_text(
        yaml.safe_dump(plain, sort_keys=False), encoding="utf-8"
    )
    text = _text(recipe, rows, times, teacher, model.num_parameters())
    (checkpoint / "report.md").write_text(text, encoding="utf-8")
    return rows


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; none if it is not there."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def plot_losses(
    metrics: dict[str, list[dict[str, Any]]], titles: dict[str, str], file: Path
) -> None:
    """Draw losses over steps, a panel for each stage."""
    stages = [stage for stage in titles if metrics[stage]]
    columns = -(-len(stages) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(5 * columns, 6.5), constrained_layout=True)
    for panel in axes.flat[len(stages) :]:
        panel.set_visible(False)
    for panel, stage in zip(axes.flat, stages, strict=False):
        lines = metrics[stage]
        steps = [line["step"] for line in lines]
        for key, label in _curves(stage, lines):
            panel.plot(steps, [line[key] for line in lines], label=label, linewidth=1.2)
        panel.set(title=titles[stage], xlabel="step", ylabel="loss", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _titles(recipe: DemoRecipe) -> dict[str, str]:
    """Names of the stages that take time, in order, with what people call them."""
    rounds = range(1, len(recipe.finetune) + 1)
    return _TITLES | {f"finetune-{n}": f"fine-tune at native resolution, {n}" for n in rounds}


def _curves(stage: str, lines: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    if not lines:
        return []
    if stage == "teacher":
        return [(name, name) for name in ("shape", "colour", "count", "digit", "canon")]
    curves = [("lm", "language modelling")]
    if stage == "pretrain":
        blocks = sorted(key for key in lines[0] if key.startswith("aux_"))
        curves += [(key, f"distillation, block {key[4:]}") for key in blocks]
    return curves


def _text(
    recipe: DemoRecipe,
    rows: Sequence[Row],
    times: dict[str, float],
    teacher: dict[str, float],
    parameters: int,
) -> str:
    stages = "\n".join(
        f"| {title} | {times[stage] / 60:.1f} |"
        for stage, title in _titles(recipe).items()
        if stage in times
    )
    examples = sum(r.optimisation.steps * r.optimisation.batch_size for r in recipe.finetune)
    return f"""# The demo model

Trained from nothing by `vora-serve demo train` with the `recipe.yaml` beside this file (seed
{recipe.seed}); {parameters / 1e6:.2f} M parameters, exported in bfloat16.

## Answers to held-out questions

{recipe.held_out} questions of each group about scenes of seed {SUITE_SEED} of the test split,
which training never draws from, and digits of the data set that training does not see. Greedy
decoding, native resolution. An answer counts when it is exactly the expected word.

{draw_table(rows)}

Through a running server: `vora-serve evaluate --suite demo --base-url http://127.0.0.1:8000`.

The teacher, on held-out images: of the patches on a shape, {teacher["shape_accuracy"]:.1%} know
the shape and {teacher["colour_accuracy"]:.1%} the colour; {teacher["count_accuracy"]:.1%} of counts
and {teacher["digit_accuracy"]:.1%} of digits are right.

## Losses

![Losses over steps](losses.png)

## Time

| Stage | Minutes |
| --- | ---: |
{stages}
| all | {times["all"] / 60:.1f} |

{os.cpu_count()} CPU cores ({platform.machine()}), float32, torch {torch.__version__}, transformers
{transformers_version}. The fine-tune saw {examples:,} conversations.
"""
