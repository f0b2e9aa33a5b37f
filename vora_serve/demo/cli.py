"""``vora-serve demo``: train the demo model, and draw images of its world."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vora_core.errors import ConfigError
from vora_serve.command import App

app = App(help="Train the demo model, or draw an image for it.", no_args_is_help=True)


@app.command(needs="train")
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the recipe: key=value; dots separate nested keys."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Recipe (YAML file) [the demo's own].")
    ] = None,
    run: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("runs/demo"),
    processes: Annotated[int, typer.Option(min=1, help="Processes for training VoRA itself.")] = 2,
    fresh: Annotated[
        bool, typer.Option(help="Start over instead of resuming the run in the folder.")
    ] = False,
) -> None:
    """Train tokenizer, LLM and teacher, pretrain, merge, fine-tune, export, and write a report."""
    import transformers

    from vora_serve.demo.recipe import RECIPE_FILE, read_demo_recipe
    from vora_serve.demo.train import clean, train_demo

    transformers.logging.set_verbosity_error()
    recipe = read_demo_recipe(config or RECIPE_FILE, overrides)
    if fresh:
        clean(run)
    out = train_demo(recipe, run, processes)
    sys.stdout.write((out / "report.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"\nThe model is in {out}.\n")


@app.command(needs="train")
def adapters(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the recipe: key=value; dots separate nested keys."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Recipe (YAML file) [the adapters' own].")
    ] = None,
    run: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("runs/demo"),
) -> None:
    """Train two vision adapters on the demo model's LLM; write a report."""
    import transformers

    from vora_serve.demo.adapters import ADAPTERS_RECIPE, read_adapters_recipe, train_adapters

    transformers.logging.set_verbosity_error()
    recipe = read_adapters_recipe(config or ADAPTERS_RECIPE, overrides)
    out = train_adapters(recipe, run)
    sys.stdout.write((out / "README.md").read_text(encoding="utf-8"))
    sys.stdout.write(f"\nThe LLM and its adapters are in {out}.\n")


@app.command("image", formerly="picture")
def draw_image(
    file: Annotated[Path, typer.Argument(help="PNG file to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the image.")] = 7,
    digit: Annotated[bool, typer.Option(help="Draw a handwritten digit, not shapes.")] = False,
) -> None:
    """Draw a held-out image of the demo's world, and describe it."""
    from vora_serve.world.digits import random_digit
    from vora_serve.world.questions import digit_caption, scene_caption
    from vora_serve.world.scenes import random_scene, render

    if digit:
        drawn = random_digit(seed, "test", 0)
        image, caption = drawn.image, digit_caption(drawn.digit)
    else:
        scene = random_scene(seed, "test", 0)
        image, caption = render(scene), scene_caption(scene)
    try:
        image.save(file, "PNG")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}.") from error
    sys.stdout.write(f"{file}: {caption}\n")
