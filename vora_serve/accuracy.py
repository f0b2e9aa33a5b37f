"""Right answers counted by group, and drawn as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """How one group of questions went.

    Attributes:
        group: its name.
        questions: how many were asked.
        accuracy: share of right answers.
        blank: the same with blank images; None when that was not asked.
        chance: share of right answers of somebody who guesses.
    """

    group: str
    questions: int
    accuracy: float
    blank: float | None
    chance: float


def summarise(
    groups: Sequence[tuple[str, float]], right: Sequence[bool], blank: Sequence[bool] | None
) -> list[Row]:
    """Count by group, in the order in which groups first appear.

    Args:
        groups: each question's group, and its chance level.
        right: whether its answer was right.
        blank: the same about blank images.
    """
    rows = []
    for group, chance in dict.fromkeys(groups):
        of_group = [index for index, (name, _) in enumerate(groups) if name == group]
        rows.append(
            Row(
                group,
                len(of_group),
                sum(right[i] for i in of_group) / len(of_group),
                None if blank is None else sum(blank[i] for i in of_group) / len(of_group),
                chance,
            )
        )
    return rows


def sign_test(right: Sequence[bool], blank: Sequence[bool]) -> float:
    """How likely chance alone makes answers so much better than those about blank images.

    McNemar's exact test, one-sided: of the questions that were answered right only once, as many or
    more were right with the image, if both were equally likely.

    Args:
        right: whether each answer was right.
        blank: the same about blank images, question by question.

    Returns:
        The probability; 1 where no answer differs.
    """
    gained = sum(r and not b for r, b in zip(right, blank, strict=True))
    lost = sum(b and not r for r, b in zip(right, blank, strict=True))
    differing = gained + lost
    at_least = sum(math.comb(differing, n) for n in range(gained, differing + 1))
    return at_least / (1 << differing)


def draw_table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table, accuracies in per cent."""
    lines = [
        "| Questions | Number | Right | With a blank image | Chance |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        blank = "–" if row.blank is None else f"{row.blank:.1%}"
        lines.append(
            f"| {row.group} | {row.questions} | {row.accuracy:.1%} | {blank} | {row.chance:.1%} |"
        )
    return "\n".join(lines)
