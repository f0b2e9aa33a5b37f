"""The suite text: how far a model's answers are from those of the LLM that it was made from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.vora_serve.evaluation.test_evaluate import serving
from vora_core.errors import ConfigError
from vora_serve.evaluation.cli import evaluate
from vora_serve.evaluation.client import EvaluationError

HEAD = ["<user>", "ask", "<assistant>"]
ODDS = {"good": (0.5, 1), "poor": (0.125, 3)}


def answer(body: dict[str, Any]) -> tuple[int, bytes]:
    """Knows each word as a token; says "good good" to everything."""
    told = body["messages"][1:]
    if not told:
        said = {"choices": [{"message": {"content": "good good"}}]}
        return 200, json.dumps(said | {"usage": {"prompt_tokens": len(HEAD)}}).encode()
    assert body["continue_final_message"]
    assert body["add_generation_prompt"] is False
    assert body["prompt_logprobs"] == 0
    entries: list[Any] = [None] + [{"1": {"logprob": -9.0, "rank": 7}}] * (len(HEAD) - 1)
    for word in told[0]["content"].split():
        chance, rank = ODDS[word]
        entries.append({"5": {"logprob": math.log(chance), "rank": rank}})
    said = {"choices": [{"message": {"content": "x"}}], "prompt_logprobs": entries}
    return 200, json.dumps(said).encode()


def write(folder: Path, *answers: str) -> Path:
    file = folder / "texts.jsonl"
    lines = [json.dumps({"question": f"ask {i}", "answer": a}) for i, a in enumerate(answers)]
    file.write_text("\n".join(lines))
    return file


def test_answers_agreement_and_perplexity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = write(tmp_path, "good good", "good poor"), tmp_path / "result.json"
    with serving(answer) as (url, bodies):
        evaluate(url, suite="text", data=file, output=output)
    result = json.loads(output.read_text())
    assert result["metrics"]["same_answers"] == 0.5
    assert result["metrics"]["agreement"] == 0.75
    # Three tokens of 1/2 and one of 1/8; the prompt's own do not count.
    assert result["metrics"]["perplexity"] == pytest.approx(2 ** ((3 + 3) / 4))
    assert [reply["reply"] for reply in result["replies"]] == ["good good"] * 2
    assert "| texts | 2 | 50.0% | 75.0% | 2.828 |" in capsys.readouterr().out
    assert {body["temperature"] for body in bodies} == {0.0}


def test_a_server_without_log_probabilities_is_named(tmp_path: Path) -> None:
    said = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1}}
    with (
        serving(lambda _: (200, json.dumps(said).encode())) as (url, _),
        pytest.raises(EvaluationError, match="returns no log-probabilities of prompts"),
    ):
        evaluate(url, suite="text", data=write(tmp_path, "good"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"question": "a"}', "text 1: it needs a question and an answer"),
        ('{"question": "a", "answer": "b"}\n["c"]', "text 2: it needs"),
        ('{"question": "a", "answer": " "}', "text 1: it needs"),
        ("", "holds no texts"),
        ("{", "neither JSON lines"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_asked(
    tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        evaluate("http://127.0.0.1:9", suite="text", data=file)
