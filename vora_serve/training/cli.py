"""``vora-serve pretrain``, ``merge``, ``finetune`` and ``plot``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vora_serve.command import App

app = App(add_completion=False)

Config = Annotated[
    str, typer.Option("--config", help="Recipe: a YAML file, or the name of a built-in recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe: key=value; dots separate nested keys."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the plan, memory and time; train nothing."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
Processes = Annotated[int, typer.Option(min=1, help="With --dry-run: number of processes.")]
Tflops = Annotated[
    float,
    typer.Option(
        min=0.001, help="With --dry-run: TFLOP/s per process [400, 40 % of an H100's peak]."
    ),
]


@app.command(needs="train")
def pretrain(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    processes: Processes = 1,
    tflops: Tflops = 400.0,
) -> None:
    """Teach an LLM to see: LoRA pretraining with distillation.

    Start it with torchrun to use several processes.
    """
    from vora_serve.training import run
    from vora_serve.training.recipe import read_recipe
    from vora_serve.training.run_recipe import PretrainRun, find_recipe

    _prepare()
    recipe = read_recipe(PretrainRun, find_recipe(config), overrides or [])
    if dry_run:
        sys.stdout.write(run.describe(recipe, processes, tflops))
        return
    _say(f"The checkpoint is in {run.run_pretrain(recipe, overwrite=overwrite)}.")
    run.finish()


@app.command(needs="train")
def finetune(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    processes: Processes = 1,
    tflops: Tflops = 400.0,
) -> None:
    """Fine-tune the LLM and the embedder of a merged model.

    Start it with torchrun to use several processes.
    """
    from vora_serve.training import run
    from vora_serve.training.recipe import read_recipe
    from vora_serve.training.run_recipe import FinetuneRun, find_recipe

    _prepare()
    recipe = read_recipe(FinetuneRun, find_recipe(config), overrides or [])
    if dry_run:
        sys.stdout.write(run.describe(recipe, processes, tflops))
        return
    _say(f"The checkpoint is in {run.run_finetune(recipe, overwrite=overwrite)}.")
    run.finish()


@app.command(needs="train")
def merge(
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option("--config", help="Recipe: source, out, dtype, shard_gb, verify.")
    ] = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Merge a pretraining checkpoint's LoRA factors into the LLM's weights.

    Example: vora-serve merge source=runs/a/checkpoint out=runs/a/merged
    """
    from vora_core import typed_yaml
    from vora_serve.training import run
    from vora_serve.training.recipe import parse_recipe, read_recipe
    from vora_serve.training.run_recipe import MergeRun, find_recipe

    _prepare()
    if config is not None:
        recipe = read_recipe(MergeRun, find_recipe(config), overrides or [])
    else:
        recipe = parse_recipe(MergeRun, typed_yaml.override({}, overrides or []))
    if dry_run:
        sys.stdout.write(run.describe_merge(recipe))
        return
    for line in run.run_merge(recipe, overwrite=overwrite):
        _say(line)


@app.command(needs="train")
def plot(
    folder: Annotated[Path, typer.Argument(help="Folder of a run; contains metrics.jsonl.")],
    out: Annotated[
        Path | None, typer.Option(help="Image file to write [FOLDER/metrics.png].")
    ] = None,
) -> None:
    """Plot a run's losses, gradient norm and throughput."""
    from vora_serve.training.plots import plot_run

    target = out or folder / "metrics.png"
    plot_run(folder, target)
    _say(f"Wrote {target}.")


def _prepare() -> None:
    """Keep libraries from talking over the run's own output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.logging.set_verbosity_error()


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(text + "\n")
