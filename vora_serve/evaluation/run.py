"""One evaluation: read the suites, send the questions, count the right answers."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
import yaml

from vora_core.errors import ConfigError
from vora_serve.accuracy import draw_table, summarise
from vora_serve.evaluation.client import Endpoint, ImageSource, ask_all
from vora_serve.evaluation.files import Question, matches, read_suite, score
from vora_serve.evaluation.recipe import EvaluationRecipe, SuiteRecipe
from vora_serve.evaluation.table import draw_scores
from vora_serve.evaluation.texts import Text, ask_texts, read_texts, score_texts
from vora_serve.world.suite import Item, build_suite, is_right
from vora_serve.world.wide.assets import EMOJI_FOLDER, find_assets
from vora_serve.world.wide.suite import build_wide_suite

_DEMO_LIMIT = 300


def run_evaluation(
    recipe: EvaluationRecipe, api_key: str | None, output: Path | None, dry_run: bool
) -> None:
    """Evaluate a served model, and print a table for each suite.

    Args:
        recipe: server and suites.
        api_key: sent as a bearer token, if given.
        output: JSON file for the result, written after every suite.
        dry_run: read and check the suites, but send nothing.

    Raises:
        ConfigError: a suite cannot be read, or the output cannot be written.
        EvaluationError: the server cannot be reached, or refuses a question.
    """
    questions = [_read(suite) for suite in recipe.suites]
    if dry_run:
        sys.stdout.write(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        for suite, asked in zip(recipe.suites, questions, strict=True):
            sys.stdout.write(f"{suite.label}: {len(asked)} questions\n")
        return
    endpoint = Endpoint(
        recipe.base_url,
        recipe.model,
        api_key,
        concurrency=recipe.concurrency,
        timeout=recipe.timeout,
    )
    results = []
    for suite, asked in zip(recipe.suites, questions, strict=True):
        results.append(_run(endpoint, suite, asked))
        if output is not None:
            _write(output, recipe, results)


def _read(suite: SuiteRecipe) -> list[Any]:
    """A suite's questions, before any is sent."""
    if suite.kind == "demo":
        return build_suite(suite.limit or _DEMO_LIMIT, suite.seed)
    if suite.kind == "world":
        assets = find_assets(suite.data or EMOJI_FOLDER)
        return build_wide_suite(assets, suite.limit or _DEMO_LIMIT, suite.seed)
    assert suite.data is not None  # the recipe checks it
    if suite.kind == "text":
        return read_texts(suite.data, suite.limit)
    return read_suite(suite.kind, suite.data, suite.images, suite.prompt, suite.limit)


def _run(endpoint: Endpoint, suite: SuiteRecipe, questions: list[Any]) -> dict[str, Any]:
    if suite.kind == "demo" or suite.kind == "world":
        items: list[Item] = questions
        right = _ask_items(endpoint, items, "questions")
        control = None
        if suite.blank:
            control = _ask_items(endpoint, [item.blank() for item in items], "blank images")
        rows = summarise([(item.group, item.chance) for item in items], right, control)
        sys.stdout.write(draw_table(rows) + "\n")
        return {"suite": suite.kind, "seed": suite.seed, "groups": [asdict(row) for row in rows]}
    if suite.kind == "text":
        return _run_texts(endpoint, suite, questions)
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
                "right": matches(kind, question, reply),
            }
            for question, reply in zip(asked, replies, strict=True)
        ],
    }


def _run_texts(endpoint: Endpoint, suite: SuiteRecipe, texts: list[Text]) -> dict[str, Any]:
    with _progress(len(texts), suite.label) as bar:
        replies = ask_texts(endpoint, texts, lambda: bar.update(1))
    scores = score_texts(texts, replies)
    sys.stdout.write(draw_scores(suite.label, scores) + "\n")
    told = [
        asdict(text) | {"reply": reply.reply, "logprob": sum(reply.logprobs)}
        for text, reply in zip(texts, replies, strict=True)
    ]
    return {"suite": suite.label, "kind": suite.kind, **asdict(scores), "replies": told}


def _ask_items(endpoint: Endpoint, items: list[Item], name: str) -> list[bool]:
    replies = _ask(endpoint, [(item.images, item.question) for item in items], name, 16)
    return [is_right(reply, item.answer) for reply, item in zip(replies, items, strict=True)]


def _ask(
    endpoint: Endpoint, asked: list[tuple[ImageSource, str]], name: str, max_tokens: int
) -> list[str]:
    with _progress(len(asked), name) as bar:
        return ask_all(endpoint, asked, lambda: bar.update(1), max_tokens)


def _progress(length: int, name: str) -> Any:
    return typer.progressbar(length=length, label=name, file=sys.stderr, show_pos=True)


def _write(output: Path, recipe: EvaluationRecipe, results: list[dict[str, Any]]) -> None:
    """A single result at the top level; several results under ``suites``."""
    plain = recipe.model_dump(mode="json")
    content: dict[str, Any] = results[0] if len(recipe.suites) == 1 else {"suites": results}
    text = json.dumps(content | {"recipe": plain}, indent=2) + "\n"
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}.") from error
