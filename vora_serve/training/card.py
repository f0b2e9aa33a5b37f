"""The model card that goes with a checkpoint: what it was made from, how, and how it went."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from pydantic import BaseModel

from vora_serve.training.metrics import METRICS_FILE

CARD = "README.md"
RECIPE = "recipe.yaml"


def checkpoint_files(stage: str, recipe: BaseModel, run: Path | None) -> dict[str, str]:
    """Text files for a checkpoint: its card and its recipe.

    Args:
        stage: ``pretrain``, ``merge`` or ``finetune``.
        recipe: as resolved.
        run: folder of the run's metrics; none for a merge.
    """
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return {CARD: _card(stage, recipe, plain, _last(run, stage)), RECIPE: plain}


def _card(stage: str, recipe: BaseModel, plain: str, last: dict[str, dict[str, Any]]) -> str:
    summary = {
        "pretrain": "LoRA pretraining; the factors stand beside the base weights. Merge it with "
        "`vora-serve merge` before it is served.",
        "merge": "A pretraining checkpoint with its LoRA factors merged.",
        "finetune": "A merged model, fine-tuned whole.",
    }[stage]
    if getattr(recipe, "encoder", None) is not None:
        summary = "LLaVA's architecture: a vision tower, a projector, and the LLM."
    lines = ["---", "library_name: vora-serve", "pipeline_tag: image-text-to-text", "---", ""]
    lines += ["# VoRA model", "", summary, ""]
    data = getattr(recipe, "data", None)
    if data is not None:
        lines += ["## Data", "", "| Files | Weight |", "| --- | ---: |"]
        lines += [f"| `{', '.join(s.files)}` | {s.weight:g} |" for s in data.sources]
        lines += [""]
    for name, values in last.items():
        lines += [f"## Last metrics: {name}", "", "| | |", "| --- | ---: |"]
        lines += [f"| {key} | {value} |" for key, value in values.items() if key != "stage"]
        lines += [""]
    lines += ["## Recipe", "", "```yaml", plain.rstrip(), "```", "", "## Made with", ""]
    lines += [
        f"vora-serve {version('vora-serve')}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}.",
        "",
    ]
    return "\n".join(lines)


def _last(run: Path | None, stage: str) -> dict[str, dict[str, Any]]:
    """The last line of each kind that a run wrote."""
    file = run / METRICS_FILE if run is not None else None
    if file is None or not file.is_file():
        return {}
    last = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        if data["stage"].partition(",")[0] == stage:
            last[data["stage"]] = data
    return last
