"""How replies are scored: exact match, multiple choice, yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "no", "unclear"]

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}


def normalise(text: str) -> str:
    """An answer as VQA compares it: lower case, no marks, no articles, numbers as digits."""
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower().strip())
    text = re.sub(r"(?!(?<=\d)\.(?=\d))[^\w\s]", " ", text)
    words = [_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES]
    return " ".join(words)


def exact_match(said: str, answers: Sequence[str]) -> bool:
    """Whether a reply is one of the answers, compared as VQA does."""
    return normalise(said) in {normalise(answer) for answer in answers}


def consensus(said: str, answers: Sequence[str]) -> float:
    """VQAv2's accuracy: three of the people who were asked make an answer right."""
    same = sum(normalise(said) == normalise(answer) for answer in answers)
    return min(1.0, same / min(3, len(answers)))


def chosen_option(said: str, options: Sequence[str]) -> int | None:
    """Which option a reply chooses, by its letter or its text; None if neither is clear.

    Args:
        said: the reply.
        options: texts of the options A, B, ...
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    text = said.strip()
    alone = re.fullmatch(r"\(?([A-Za-z])[\).:]?", text)
    begins = re.match(r"\(?([A-Z])[\).:](?:\s|$)|([A-Z])\s*$", text)
    stated = re.findall(r"(?i:answer|option|choice)(?i:\s+is)?[:\s]+\(?([A-Z])\b", text)
    for letter in (
        alone[1].upper() if alone else None,
        (begins[1] or begins[2]) if begins else None,
        stated[-1] if stated else None,
    ):
        if letter is not None and letter in letters:
            return letters.index(letter)
    wanted = normalise(text)
    same = [i for i, option in enumerate(options) if normalise(option) == wanted]
    if not same:
        names = [rf"\b{re.escape(normalise(option))}\b" for option in options]
        same = [i for i, name in enumerate(names) if re.search(name, wanted)]
    return same[0] if len(same) == 1 else None


def yes_or_no(said: str) -> Verdict:
    """What a reply to a yes/no question says, by its first sentence."""
    words = re.findall(r"[a-z']+", said.lower().split(".")[0])
    if not words:
        return "unclear"
    if words[0] in ("yes", "no"):
        return "yes" if words[0] == "yes" else "no"
    negative = any(word in ("no", "not") or word.endswith("n't") for word in words)
    if "yes" in words and not negative:
        return "yes"
    return "no" if negative else "unclear"


@dataclass(frozen=True)
class YesNoScore:
    """Scores of yes/no questions; ``yes`` is what precision and recall are about.

    An unclear reply is wrong, and counts as neither yes nor no.
    """

    questions: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float
    unclear: int


def score_yes_no(said: Sequence[Verdict], labels: Sequence[str]) -> YesNoScore:
    """Accuracy, precision, recall, F1 and the share of yes.

    Args:
        said: judgements of the replies.
        labels: ``yes`` or ``no``.
    """
    pairs = list(zip(said, labels, strict=True))
    hits = sum(a == b for a, b in pairs)
    true_yes = sum(a == b == "yes" for a, b in pairs)
    said_yes = sum(a == "yes" for a, _ in pairs)
    are_yes = sum(b == "yes" for _, b in pairs)
    precision = true_yes / said_yes if said_yes else 0.0
    recall = true_yes / are_yes if are_yes else 0.0
    both = precision + recall
    return YesNoScore(
        questions=len(pairs),
        accuracy=hits / len(pairs),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / both if both else 0.0,
        yes_share=said_yes / len(pairs),
        unclear=sum(a == "unclear" for a, _ in pairs),
    )
