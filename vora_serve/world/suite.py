"""Held-out questions about the demo's world, balanced so that guessing stays at chance.

Scenes come from the test split's random streams, which training never draws from, and digits from
the part of the data set that training never sees. Needs only numpy and Pillow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vora_serve.world.digits import random_digit
from vora_serve.world.questions import (
    CHANCE,
    FAMILIES,
    NUMBERS,
    Family,
    Question,
    digit_questions,
    scene_questions,
)
from vora_serve.world.scenes import COLOURS, SHAPES, blank_like, random_scene, render

SUITE_SEED = 20_011
#: Groups of questions that are counted apart: the families, and what is asked of a single shape.
GROUPS: tuple[str, ...] = (*FAMILIES, "colour, one shape", "shape, one shape")
ANSWERS: dict[Family, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "count": NUMBERS[1:5],
    "place": ("left", "right", "above", "below"),
    "digit": NUMBERS,
}


@dataclass(frozen=True)
class Item:
    """One question about one image, or two.

    Attributes:
        group: one of :data:`GROUPS`, or a family of the wide world.
        images: RGB.
        question: as a user asks it.
        answer: the right answer, in lower case.
        chance: share of right answers of somebody who guesses.
    """

    group: str
    images: tuple[Image.Image, ...]
    question: str
    answer: str
    chance: float

    @property
    def image(self) -> Image.Image:
        """The first image."""
        return self.images[0]

    def blank(self) -> Item:
        """The same question about images that show nothing."""
        return replace(self, images=tuple(blank_like(*image.size) for image in self.images))


def build_suite(per_group: int, seed: int = SUITE_SEED) -> list[Item]:
    """Draw the questions.

    Args:
        per_group: questions of each group; each possible answer is right equally often, but for a
            remainder.
        seed: of the images, all of them from the test split.

    Returns:
        The questions, group after group; no two of a group are about the same image.
    """
    items: list[Item] = []
    for number, group in enumerate(GROUPS):
        family: Family = group.split(",")[0]  # type: ignore[assignment]
        images = _images(group, np.random.SeedSequence([seed, number]).generate_state(1)[0])
        wanted = {
            answer: (per_group + place) // len(ANSWERS[family])
            for place, answer in enumerate(reversed(ANSWERS[family]))
        }
        while any(wanted.values()):
            image, questions = next(images)
            question = next((q for q in questions if q.family == family and wanted[q.answer]), None)
            if question is not None:
                wanted[question.answer] -= 1
                items.append(
                    Item(group, (image(),), question.text, question.answer, CHANCE[family])
                )
    return items


def _images(group: str, seed: int) -> Iterator[tuple[Callable[[], Image.Image], list[Question]]]:
    """Images for a group, drawn only when called for, with all that can be asked of each."""
    seed, index = int(seed), 0
    while True:
        rng = np.random.default_rng([seed, index, 79])
        if group == "digit":
            drawn = random_digit(seed, "test", index)
            yield (lambda image=drawn.image: image), digit_questions(drawn.digit, rng)  # type: ignore[misc]
        else:
            count = 1 if group.endswith("one shape") else None
            scene = random_scene(seed, "test", index, count=count)
            yield (lambda scene=scene: render(scene)), scene_questions(scene, rng)  # type: ignore[misc]
        index += 1


def is_right(said: str, answer: str) -> bool:
    """Whether a reply is the expected answer, whatever its case, marks, article or numerals."""
    return _words(said) == _words(answer)


def _words(text: str) -> list[str]:
    words = re.sub(r"[^a-z0-9 ]", " ", text.lower()).split()
    words = [NUMBERS[int(word)] if re.fullmatch("[0-9]", word) else word for word in words]
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words
