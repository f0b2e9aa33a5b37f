"""Suites from local files: questions as they are sent, replies as they are judged."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.vora_serve.evaluation.test_evaluate import completion, serving
from vora_core.errors import ConfigError
from vora_serve.evaluation.cli import evaluate
from vora_serve.evaluation.files import read_suite, score
from vora_serve.evaluation.score import (
    chosen_option,
    consensus,
    exact_match,
    normalise,
    score_yes_no,
    yes_or_no,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / name)
    records: dict[str, list[dict[str, Any]]] = {
        "vqa": [
            {"image": "a.png", "question": "Colour?", "answers": ["red"] * 8 + ["crimson"] * 2},
            {"image": "b.jpg", "question": "How many?", "answer": 2},
            {"question": "2 + 2?", "answer": "4", "category": "text"},
        ],
        "choice": [
            {"image": "a.png", "question": "What?", "options": ["cat", "dog"], "answer": "B"},
            {"question": "Who?", "options": {"A": "x", "B": "y", "C": "z"}, "answer": 2},
        ],
        "pope": [
            {"image": "a.png", "text": f"Is there a {i}?", "label": label, "category": category}
            for i, (label, category) in enumerate(
                [("yes", "random"), ("no", "random"), ("yes", "popular"), ("no", "popular")]
            )
        ],
    }
    for name, rows in records.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "array.json").write_text(json.dumps(records["vqa"]))
    return tmp_path


def test_every_suite_over_http(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replies = {
        "Colour?": "Red.",
        "How many?": "two",
        "2 + 2?": "five",
        "What?": "B. dog",
        "Who?": "I think it is x or y",
        "Is there a 0?": "Yes, there is.",
        "Is there a 1?": "yes",
        "Is there a 2?": "There isn't one.",
        "Is there a 3?": "No",
    }

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        text = body["messages"][0]["content"][-1]["text"]
        return completion(next(r for q, r in replies.items() if text.startswith(q)))

    config = folder / "evaluation.yaml"
    suites = [{"kind": k, "data": str(folder / f"{k}.jsonl")} for k in ("vqa", "choice", "pope")]
    config.write_text(json.dumps({"suites": suites}))
    output = folder / "result.json"
    with serving(answer) as (url, bodies):
        evaluate(url, config=config, output=output, overrides=["suites.0.max_tokens=5"])
    result = json.loads(output.read_text())
    vqa, choice, pope = result["suites"]
    assert vqa["metrics"] == pytest.approx({"accuracy": 2 / 3, "consensus": 2 / 3})
    assert set(vqa["categories"]) == {"", "text"}
    assert choice["metrics"] == {"accuracy": 0.5, "unclear": 1}
    assert pope["metrics"] == {
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "yes_share": 0.5,
        "unclear": 0,
    }
    assert pope["categories"]["popular"]["recall"] == 0.0
    assert [r["right"] for r in pope["replies"]] == [True, False, False, True]
    table = capsys.readouterr().out
    assert "| pope | 4 | 50.0% | 50.0% | 50.0% | 50.0% | 50.0% | 0 |" in table

    sent = {b["messages"][0]["content"][-1]["text"].split("\n")[0]: b for b in bodies}
    content = sent["How many?"]["messages"][0]["content"]
    url = content[0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(url.partition(",")[2]) == (folder / "b.jpg").read_bytes()
    assert len(sent["2 + 2?"]["messages"][0]["content"]) == 1, "no image, no image part"
    assert sent["Colour?"]["max_tokens"] == 5
    assert sent["What?"]["messages"][0]["content"][1]["text"] == (
        "What?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    )


def test_a_dry_run_asks_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate("http://127.0.0.1:9", suite="vqa", data=folder / "array.json", limit=2, dry_run=True)
    assert "array: 2 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "record", "said"),
    [
        ("vqa", {"question": "?"}, "question 1: it has no 'answer'"),
        ("vqa", {"question": "?", "answers": []}, "no answer"),
        ("vqa", {"answer": "x"}, "it has no 'text'"),
        ("vqa", {"question": "?", "answer": "x", "image": "gone.png"}, "no image .*gone.png"),
        ("vqa", ["x"], "not a record"),
        ("choice", {"question": "?", "options": ["a"], "answer": "A"}, "2 to 26 options"),
        ("choice", {"question": "?", "options": ["a", "b"], "answer": "C"}, "none of its options"),
        ("pope", {"question": "?", "label": "maybe"}, "not yes or no"),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, kind: Any, record: Any, said: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(record))
    if isinstance(record, list):
        file.write_text("[" + json.dumps(record) + "]")
    with pytest.raises(ConfigError, match=said):
        read_suite(kind, file, None, None, None)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    for content, said in (("{", "neither JSON lines"), ("", "holds no questions")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=said):
            read_suite("vqa", file, None, None, None)
    file.write_text('{"question": "?", "answer": "x"}')
    with pytest.raises(ConfigError, match="place"):
        read_suite("vqa", file, None, "no place", None)


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("The red one.", ["red one"], True),
        ("two", ["2"], True),
        ("1,000", ["1000"], True),
        ("1.5", ["15"], False),
        ("a dog!", ["dog", "cat"], True),
        ("dogs", ["dog"], False),
        ("", ["x"], False),
    ],
)
def test_exact_match(said: str, answers: list[str], right: bool) -> None:
    assert exact_match(said, answers) is right


def test_consensus_and_normalisation() -> None:
    assert normalise("  The  U.S.A, and 3.5 ") == "u s and 3.5"
    people = ["yes"] * 2 + ["no"] * 8
    assert consensus("Yes", people) == pytest.approx(2 / 3)
    assert consensus("no", people) == 1.0
    assert consensus("maybe", people) == 0.0


@pytest.mark.parametrize(
    ("said", "option"),
    [
        ("B", 1),
        ("(c)", 2),
        ("b.", 1),
        ("B. a dog", 1),
        ("The answer is C", 2),
        ("Answer: A", 0),
        ("a dog", 1),
        ("It shows a dog.", 1),
        ("a cat and a dog", None),
        ("A bird", 2),
        ("Z", None),
        ("", None),
    ],
)
def test_chosen_options(said: str, option: int | None) -> None:
    assert chosen_option(said, ["a cat", "a dog", "bird"]) == option


@pytest.mark.parametrize(
    ("said", "judged"),
    [
        ("Yes.", "yes"),
        ("no", "no"),
        ("No, it is not. Yes?", "no"),
        ("There is no dog", "no"),
        ("It isn't there", "no"),
        ("I would say yes", "yes"),
        ("perhaps", "unclear"),
        ("", "unclear"),
    ],
)
def test_yes_and_no(said: str, judged: str) -> None:
    assert yes_or_no(said) == judged


def test_scores_by_hand() -> None:
    scores = score_yes_no(["yes", "yes", "no", "no", "unclear"], ["yes", "no", "yes", "no", "yes"])
    assert (scores.accuracy, scores.precision) == (0.4, 0.5)
    assert scores.recall == pytest.approx(1 / 3)
    assert scores.f1 == pytest.approx(0.4)
    assert scores.unclear == 1
    nothing = score_yes_no(["no"], ["no"])
    assert (nothing.accuracy, nothing.f1) == (1.0, 0.0)


def test_circular_questions_count_where_every_rotation_is_right(tmp_path: Path) -> None:
    rows = [
        {"question": "What?", "options": ["cat", "dog", "cow"], "answer": "B"},
        {"question": "Who?", "options": ["x", "y"], "answer": "A"},
    ]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows))
    questions = read_suite("circular", file, None, None, None)
    assert [q.options for q in questions] == [
        ("cat", "dog", "cow"), ("dog", "cow", "cat"), ("cow", "cat", "dog"), ("x", "y"), ("y", "x"),
    ]  # fmt: skip
    assert ["ABC"[int(q.answers[0])] for q in questions] == list("BACAB")
    scores = score("circular", questions, ["B", "A", "C", "A", "A"])
    assert scores.metrics["accuracy"] == 0.5, "always A is right in a rotation alone"
    assert scores.metrics["of single rotations"] == 0.8


def test_mme_scores_are_those_of_its_paper(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{name}.png")
    rows = [
        {"image": f"{image}.png", "question": "?", "answer": answer, "category": category}
        for image, category in (("a", "color"), ("b", "color"), ("c", "code_reasoning"))
        for answer in ("yes", "no")
    ]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows))
    questions = read_suite("mme", file, None, None, None)
    scores = score("mme", questions, ["Yes", "No", "Yes", "Yes", "yes", "no"])
    assert scores.categories["color"]["score"] == 75 + 50
    assert scores.categories["code_reasoning"]["score"] == 200
    assert (scores.metrics["perception"], scores.metrics["cognition"]) == (125, 200)


def test_open_questions_are_kept_for_another_grader(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"question": "Why?"}, {"question": "How?"}]))
    questions = read_suite("open", file, None, None, None)
    assert [q.text for q in questions] == ["Why?", "How?"]
    assert score("open", questions, ["So.", " "]).metrics == {"empty": 1}
