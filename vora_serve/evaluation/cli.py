"""``vora-serve evaluate``: ask a server what it should know, and count the right answers."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from tqdm import tqdm

from vora_core import typed_yaml
from vora_serve.accuracy import draw_table, summarise
from vora_serve.command import App
from vora_serve.errors import ConfigurationError
from vora_serve.evaluation.client import Endpoint, Picture, ask_all
from vora_serve.evaluation.files import Question, judge, read_suite, score
from vora_serve.evaluation.recipe import (
    EvaluationRecipe,
    SuiteRecipe,
    parse_evaluation,
)
from vora_serve.evaluation.table import draw_scores
from vora_serve.world.suite import SUITE_SEED, Item, build_suite, is_right

app = App(add_completion=False)
_DEMO_LIMIT = 300


@app.command()
def evaluate(
    base_url: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server.")
    ] = None,
    suite: Annotated[str, typer.Option(help="What is asked: demo, vqa, choice or pope.")] = "demo",
    data: Annotated[Path | None, typer.Option(help="The suite's questions, JSON lines.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the suite's pictures; the data's by default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the model; the server's first by default.")
    ] = None,
    blank: Annotated[
        bool, typer.Option(help="Ask the demo's questions about blank pictures too, as a control.")
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Questions; of the demo, of each group [300]."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the demo's pictures.")] = SUITE_SEED,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Questions at once [8].")] = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="File for the result, replies included.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML with server and suites.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check everything, ask nothing.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe: key=value, dots nest.")
    ] = None,
) -> None:
    """Measure a served model's answers; OPENAI_API_KEY is sent if set."""
    if config is not None:
        plain = typed_yaml.read(config, subject="evaluation")
    else:
        source = {"kind": suite, "data": data, "images": images, "limit": limit}
        plain = {"suites": [source | {"seed": seed, "blank": blank}]}
    given = {"base_url": base_url, "model": model, "concurrency": concurrency}
    plain |= {key: value for key, value in given.items() if value is not None}
    typed_yaml.override(plain, overrides or [])
    if "base_url" not in plain:
        raise ConfigurationError("Say which server to ask: --base-url.")
    recipe = parse_evaluation(plain)
    questions = [_read(one) for one in recipe.suites]
    if dry_run:
        sys.stdout.write(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        for one, asked in zip(recipe.suites, questions, strict=True):
            sys.stdout.write(f"{one.label}: {len(asked)} questions\n")
        return
    endpoint = Endpoint(
        recipe.base_url,
        recipe.model,
        os.environ.get("OPENAI_API_KEY") or None,
        concurrency=recipe.concurrency,
        timeout=recipe.timeout,
    )
    results = []
    for one, asked in zip(recipe.suites, questions, strict=True):
        results.append(_run(endpoint, one, asked))
        if output is not None:
            _write(output, recipe, results)


def _read(suite: SuiteRecipe) -> list[Any]:
    """A suite's questions, before any is asked."""
    if suite.kind == "demo":
        return build_suite(suite.limit or _DEMO_LIMIT, suite.seed)
    assert suite.data is not None  # the recipe saw to it
    return read_suite(suite.kind, suite.data, suite.images, suite.prompt, suite.limit)


def _run(endpoint: Endpoint, suite: SuiteRecipe, questions: list[Any]) -> dict[str, Any]:
    if suite.kind == "demo":
        items: list[Item] = questions
        right = _ask_items(endpoint, items, "questions")
        control = _ask_items(endpoint, [i.blank() for i in items], "blank") if suite.blank else None
        rows = summarise([(item.group, item.chance) for item in items], right, control)
        sys.stdout.write(draw_table(rows) + "\n")
        return {"suite": "demo", "seed": suite.seed, "groups": [asdict(row) for row in rows]}
    kind, asked = suite.kind, list[Question](questions)
    replies = _ask(endpoint, [(q.image, q.text) for q in asked], suite.label, suite.max_tokens)
    scores = score(kind, asked, replies)
    sys.stdout.write(draw_scores(suite.label, scores) + "\n")
    return {
        "suite": suite.label,
        "kind": kind,
        **asdict(scores),
        "replies": [
            {
                "question": question.text,
                "image": str(question.image) if question.image else None,
                "answers": question.answers,
                "reply": reply,
                "right": judge(kind, question, reply),
            }
            for question, reply in zip(asked, replies, strict=True)
        ],
    }


def _ask_items(endpoint: Endpoint, items: list[Item], name: str) -> list[bool]:
    replies = _ask(endpoint, [(item.picture, item.question) for item in items], name, 16)
    return [is_right(said, item.answer) for said, item in zip(replies, items, strict=True)]


def _ask(
    endpoint: Endpoint, asked: list[tuple[Picture, str]], name: str, max_tokens: int
) -> list[str]:
    with tqdm(total=len(asked), desc=name, unit="question") as bar:
        return ask_all(endpoint, asked, lambda: bar.update() and None, max_tokens)


def _write(output: Path, recipe: EvaluationRecipe, results: list[dict[str, Any]]) -> None:
    """The one result as it is; several under ``suites``."""
    plain = recipe.model_dump(mode="json")
    whole: dict[str, Any] = results[0] if len(recipe.suites) == 1 else {"suites": results}
    text = json.dumps(whole | {"recipe": plain}, indent=2) + "\n"
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}.") from error
