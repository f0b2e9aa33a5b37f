"""Suites from local data files: questions about images, and how their replies are scored.

A file holds JSON lines or one JSON array. A record has ``question`` (or ``text``), optionally
``image`` (a path relative to the suite's folder of images) and ``category``, and

* ``vqa``: ``answer`` or ``answers``;
* ``choice``: ``options`` (a list, or letters to texts) and ``answer`` (letter, number or text);
* ``circular``: the same; each question is asked once for every rotation of its options, as MMBench
  does, and is right where all of them are;
* ``pope``: ``label`` (or ``answer``), yes or no, as POPE's own files have it;
* ``mme``: the same, with ``category``; questions about one image belong together;
* ``open``: nothing more. Replies are kept for a benchmark's own grader (MM-Vet), not scored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vora_core.errors import ConfigError
from vora_serve.evaluation.score import (
    chosen_option,
    consensus,
    exact_match,
    score_yes_no,
    yes_or_no,
)

Kind = Literal["vqa", "choice", "circular", "pope", "mme", "open"]
PROMPTS: dict[str, str] = {
    "vqa": "{question}\nAnswer the question using a single word or phrase.",
    "choice": "{question}\n{options}\n"
    "Answer with the option's letter from the given choices directly.",
    "pope": "{question}\nAnswer with yes or no.",
    # MME's own questions end so.
    "mme": "{question}",
    "open": "{question}",
}
PROMPTS["circular"] = PROMPTS["choice"]
#: MME's categories of cognition; the others are perception.
_COGNITION = {
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question of a suite.

    Attributes:
        text: as it is sent.
        image: its image's file, or None.
        answers: right answers; of a choice, the letter's number first.
        options: of a choice.
        category: groups questions in the result.
        group: questions that count together: rotations of one, or those about one image.
    """

    text: str
    image: Path | None
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    category: str = ""
    group: str = ""


@dataclass
class Scores:
    """A suite's result.

    Attributes:
        questions: how many were asked.
        metrics: by name; shares from 0 to 1, but for counts.
        categories: the same by category, where there are several.
    """

    questions: int
    metrics: dict[str, float]
    categories: dict[str, dict[str, float]] = field(default_factory=dict)


def read_suite(
    kind: Kind, file: Path, images: Path | None, prompt: str | None, limit: int | None
) -> list[Question]:
    """The questions of a data file.

    Args:
        kind: of the suite.
        file: JSON lines, or one JSON array.
        images: folder of images; the file's own when None.
        prompt: instead of the kind's own; ``{question}`` and ``{options}`` are filled in.
        limit: only so many questions from the start.

    Raises:
        ConfigError: the file, a record or an image is not as it should be.
    """
    records = read_records(file)[:limit]
    if not records:
        raise ConfigError(f"{file} holds no questions.")
    template = PROMPTS[kind] if prompt is None else prompt
    if "{question}" not in template:
        raise ConfigError("The prompt must have a place {question}.")
    questions = []
    for number, record in enumerate(records, 1):
        try:
            folder = images or file.parent
            for turn in range(_rotations(kind, record)):
                questions.append(_question(kind, record, folder, template, turn, str(number)))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file}, question {number}: {_reason(error)}") from error
    return questions


def score(kind: Kind, questions: Sequence[Question], replies: Sequence[str]) -> Scores:
    """Score a suite's replies, as a whole and by category."""
    categories = sorted({question.category for question in questions})
    result = Scores(len(questions), _metrics(kind, questions, replies))
    if len(categories) > 1:
        for category in categories:
            chosen = [i for i, q in enumerate(questions) if q.category == category]
            result.categories[category] = _metrics(
                kind, [questions[i] for i in chosen], [replies[i] for i in chosen]
            )
    if kind == "mme":
        for name, inside in (("cognition", True), ("perception", False)):
            result.metrics[name] = sum(
                metrics["score"]
                for category, metrics in result.categories.items()
                if (category.lower() in _COGNITION) is inside
            )
    return result


def matches(kind: Kind, question: Question, reply: str) -> bool:
    """Whether one reply is right."""
    if kind == "vqa":
        return exact_match(reply, question.answers)
    if kind in ("choice", "circular"):
        return chosen_option(reply, question.options) == int(question.answers[0])
    if kind == "open":
        return False
    return yes_or_no(reply) == question.answers[0]


def _metrics(kind: Kind, questions: Sequence[Question], replies: Sequence[str]) -> dict[str, float]:
    if kind == "pope":
        said = [yes_or_no(reply) for reply in replies]
        scores = asdict(score_yes_no(said, [question.answers[0] for question in questions]))
        scores.pop("questions")
        return scores
    pairs = list(zip(questions, replies, strict=True))
    if kind == "open":
        return {"empty": sum(not reply.strip() for reply in replies)}
    metrics = {"accuracy": sum(matches(kind, q, r) for q, r in pairs) / len(pairs)}
    if kind == "vqa" and any(len(question.answers) > 1 for question in questions):
        metrics["consensus"] = sum(consensus(r, q.answers) for q, r in pairs) / len(pairs)
    if kind in ("circular", "mme"):
        whole: dict[str, bool] = {}
        for q, r in pairs:
            whole[q.group] = whole.get(q.group, True) and matches(kind, q, r)
        together = sum(whole.values()) / len(whole)
        if kind == "mme":
            metrics["accuracy_plus"] = together
            metrics["score"] = 100 * (metrics["accuracy"] + together)
        else:
            metrics = {"accuracy": together, "of single rotations": metrics["accuracy"]}
    if kind in ("choice", "circular"):
        metrics["unclear"] = sum(chosen_option(r, q.options) is None for q, r in pairs)
    return metrics


def read_records(file: Path) -> list[Any]:
    """The records of a file of JSON lines, or of one JSON array.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    try:
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ConfigError(f"{file} is neither JSON lines nor a JSON array.") from error


def _rotations(kind: Kind, record: Any) -> int:
    """How often a record is asked."""
    return len(_options(record)[0]) if kind == "circular" and isinstance(record, dict) else 1


def _question(
    kind: Kind, record: Any, images: Path, template: str, turn: int, number: str
) -> Question:
    """One question of a record: ``turn`` rotates its options, ``number`` identifies it."""
    if not isinstance(record, dict):
        raise ValueError("it is not a record")
    asked = str(record["question"] if "question" in record else record["text"])
    image = None
    if record.get("image"):
        image = images / str(record["image"])
        if not image.is_file():
            raise ValueError(f"there is no image {image}")
    options: tuple[str, ...] = ()
    if kind == "vqa":
        given = record["answers"] if "answers" in record else record["answer"]
        given = given if isinstance(given, list) else [given]
        answers = tuple(str(a["answer"] if isinstance(a, dict) else a) for a in given)
        if not answers:
            raise ValueError("it has no answer")
    elif kind in ("choice", "circular"):
        options, answers = _options(record)
        right = (int(answers[0]) - turn) % len(options)
        options = options[turn:] + options[:turn]
        answers = (str(right), answers[1])
    elif kind == "open":
        answers = ()
    else:
        label = str(record["label"] if "label" in record else record["answer"]).strip().lower()
        if label not in ("yes", "no"):
            raise ValueError(f"its label is {label!r}, not yes or no")
        answers = (label,)
    shown = "\n".join(f"{chr(65 + i)}. {option}" for i, option in enumerate(options))
    text = template.replace("{options}", shown).replace("{question}", asked)
    category = str(record.get("category", ""))
    group = f"{category}/{image}" if kind == "mme" else number
    return Question(text, image, answers, options, category, group)


def _options(record: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    given = record["options"]
    options = tuple(map(str, given.values() if isinstance(given, dict) else given))
    if not 2 <= len(options) <= 26:
        raise ValueError("a choice has 2 to 26 options")
    answer = record["answer"]
    if isinstance(answer, int):
        number = answer
    elif len(str(answer)) == 1 and str(answer).upper().isalpha():
        number = ord(str(answer).upper()) - 65
    else:
        number = options.index(str(answer)) if str(answer) in options else -1
    if not 0 <= number < len(options):
        raise ValueError(f"its answer {answer!r} is none of its options")
    return options, (str(number), options[number])


def _reason(error: Exception) -> str:
    return f"it has no {error}." if isinstance(error, KeyError) else f"{error}."
