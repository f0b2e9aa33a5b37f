"""``vora-serve evaluate``: send questions with known answers, and count the right replies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vora_serve.command import App

app = App(add_completion=False)

_DEFAULT_URL = "http://127.0.0.1:8000"


@app.command(needs="evaluate")
def evaluate(
    base_url: Annotated[
        str | None,
        typer.Option(
            envvar="VORA_BASE_URL", help=f"URL of an OpenAI-compatible server [{_DEFAULT_URL}]."
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="Questions: demo, world, vqa, choice, circular, pope, mme, open or text."
        ),
    ] = "demo",
    data: Annotated[
        Path | None,
        typer.Option(help="File with the suite's questions; for world, the emoji's folder."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the suite's images [the folder of --data].")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model name [the first that the server lists].")
    ] = None,
    blank: Annotated[
        bool, typer.Option(help="Also ask about blank images, as a control (demo and world).")
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Number of questions; for demo and world, per group [300]."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed of drawn images [20011].")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Concurrent questions [8].")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="JSON file for results and replies.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with server and suites.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check everything, but send nothing.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to the configuration: key=value; dots separate nested keys."),
    ] = None,
) -> None:
    """Measure the accuracy of a served model. OPENAI_API_KEY is sent if it is set.

    Example: vora-serve evaluate --suite demo --limit 5
    """
    from vora_core import typed_yaml
    from vora_serve.evaluation.recipe import parse_evaluation
    from vora_serve.evaluation.run import run_evaluation

    if config is not None:
        plain = typed_yaml.read(config, subject="evaluation")
    else:
        source = {"kind": suite, "data": data, "images": images, "limit": limit, "blank": blank}
        plain = {"suites": [source if seed is None else source | {"seed": seed}]}
    given = {"base_url": base_url, "model": model, "concurrency": concurrency}
    plain |= {key: value for key, value in given.items() if value is not None}
    typed_yaml.override(plain, overrides or [])
    plain.setdefault("base_url", _DEFAULT_URL)
    api_key = os.environ.get("OPENAI_API_KEY") or None
    run_evaluation(parse_evaluation(plain), api_key, output, dry_run)
