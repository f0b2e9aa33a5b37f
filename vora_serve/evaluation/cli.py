"""``vora-serve evaluate``: ask a server what it should know, and count the right answers."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from vora_serve.demo.suite import SUITE_SEED, Item, build_suite, is_right
from vora_serve.errors import ConfigurationError
from vora_serve.evaluation.client import Endpoint, ask_all
from vora_serve.evaluation.table import draw_table, summarise

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    base_url: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server.")],
    suite: Annotated[str, typer.Option(help="What is asked; there is one suite, demo.")] = "demo",
    model: Annotated[
        str | None, typer.Option(help="Name of the model; the server's first by default.")
    ] = None,
    blank: Annotated[
        bool, typer.Option(help="Ask the same about blank pictures, as a control.")
    ] = True,
    limit: Annotated[int, typer.Option(min=1, help="Questions of each group.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of the held-out pictures.")] = SUITE_SEED,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    output: Annotated[Path | None, typer.Option("--json", help="File for the result.")] = None,
) -> None:
    """Measure a served model's answers to held-out questions; OPENAI_API_KEY is sent if set."""
    if suite != "demo":
        raise ConfigurationError(f"There is no suite {suite!r}; there is one suite, demo.")
    endpoint = Endpoint(
        base_url, model, os.environ.get("OPENAI_API_KEY") or None, concurrency=concurrency
    )
    items = build_suite(limit, seed)
    right = _ask(endpoint, items, "questions")
    control = _ask(endpoint, [item.blank() for item in items], "blank") if blank else None
    rows = summarise([(item.group, item.chance) for item in items], right, control)
    sys.stdout.write(draw_table(rows) + "\n")
    if output is not None:
        result = {"suite": suite, "seed": seed, "groups": [asdict(row) for row in rows]}
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _ask(endpoint: Endpoint, items: list[Item], name: str) -> list[bool]:
    with tqdm(total=len(items), desc=name, unit="question") as bar:
        asked = [(item.picture, item.question) for item in items]
        replies = ask_all(endpoint, asked, lambda: bar.update() and None)
    return [is_right(said, item.answer) for said, item in zip(replies, items, strict=True)]
