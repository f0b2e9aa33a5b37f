"""``vora-serve demo``: train the demo model, and look at its world."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vora_serve.demo.recipe import RECIPE_FILE

app = typer.Typer(help="Train and look at the demo model.", no_args_is_help=True)


@app.command()
def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe: key=value, dots nest.")
    ] = None,
    config: Annotated[Path, typer.Option(help="The recipe, a YAML file.")] = RECIPE_FILE,
    run: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    fresh: Annotated[
        bool, typer.Option(help="Begin anew instead of going on with the run in the folder.")
    ] = False,
) -> None:
    """Train tokenizer, LLM and teacher, pretrain, merge, fine-tune, export, and write a report."""
    import transformers

    from vora_serve.demo.recipe import read_demo_recipe
    from vora_serve.demo.train import clean, train_demo

    transformers.logging.set_verbosity_error()
    recipe = read_demo_recipe(config, overrides)
    if fresh:
        clean(run)
    out = train_demo(recipe, run)
    sys.stdout.write(f"The model is in {out}.\n")


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder for the pictures.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures.")] = 7,
) -> None:
    """Draw pictures of the demo's world, with what they show, to try the model on."""
    from vora_serve.demo.questions import scene_caption
    from vora_serve.demo.scenes import random_scene, render

    out.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = random_scene(seed, "test", index)
        file = out / f"scene-{index}.png"
        render(scene).save(file)
        sys.stdout.write(f"{file}: {scene_caption(scene)}\n")
