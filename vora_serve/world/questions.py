"""What can be said and asked about an image of the demo world, with the right answers.

Families of questions: ``colour``, ``shape``, ``count``, ``place``, ``digit``. A question is asked
only where the image leaves no doubt: about *the* circle when there is one circle, about left and
right when two shapes lie clearly apart. Answers are balanced within a family, so that guessing
stays at chance. Needs numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vora_serve.world.scenes import COLOURS, SHAPES, Scene, Thing

Family = Literal["colour", "shape", "count", "place", "digit"]
FAMILIES: tuple[Family, ...] = ("colour", "shape", "count", "place", "digit")
#: Share of right answers of somebody who does not see the image.
CHANCE: dict[Family, float] = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "count": 1 / 4,
    "place": 1 / 2,
    "digit": 1 / 10,
}
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
#: Two shapes lie clearly apart when their centres differ by this part of the image's side.
CLEARLY_APART = 0.15

_COLOUR_OF = (
    "What colour is the {name}?",
    "Which colour does the {name} have?",
    "Tell me the colour of the {name}.",
)
_SHAPE_OF = (
    "What shape is {name}?",
    "Which shape is {name}?",
    "Tell me what shape is {name}.",
)
_COUNT = (
    "How many shapes are there?",
    "How many shapes do you see?",
    "Count the shapes.",
)
_ACROSS = (
    "Is the {a} left or right of the {b}?",
    "Does the {a} lie to the left or to the right of the {b}?",
)
_DOWN = (
    "Is the {a} above or below the {b}?",
    "Does the {a} lie above or below the {b}?",
)
_DIGIT = (
    "Which digit is this?",
    "What digit do you see?",
    "Which number is written here?",
)
_DESCRIBE = (
    "Describe the picture.",
    "What do you see?",
    "What is in the picture?",
    "Describe this image.",
)


@dataclass(frozen=True)
class Question:
    """A question with its answer, one word of lower case.

    Attributes:
        tells: shapes whose colour and shape are known to who reads question and answer, by name.
    """

    family: Family
    text: str
    answer: str
    tells: tuple[str, ...] = ()


def scene_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Every question that a scene answers without doubt, in random order and wording.

    Args:
        scene: what the image shows.
        rng: chooses wordings and which of two shapes is asked about.
    """
    things = scene.things
    questions = [Question("count", _pick(rng, _COUNT), NUMBERS[len(things)])]
    for thing in things:
        if sum(other.shape == thing.shape for other in things) == 1:
            name = "shape" if len(things) == 1 and rng.random() < 0.3 else thing.shape
            text = _pick(rng, _COLOUR_OF).format(name=name)
            questions.append(Question("colour", text, thing.colour, (thing.name,)))
        if sum(other.colour == thing.colour for other in things) == 1:
            name = "it" if len(things) == 1 and rng.random() < 0.3 else f"the {thing.colour} one"
            text = _pick(rng, _SHAPE_OF).format(name=name)
            questions.append(Question("shape", text, thing.shape, (thing.name,)))
    for first in range(len(things)):
        for second in range(first + 1, len(things)):
            questions += _places(scene, things[first], things[second], rng)
    return [questions[i] for i in rng.permutation(len(questions))]


def only_seen(questions: list[Question]) -> list[Question]:
    """Leave out questions that the conversation before them answers: one must look at the image.

    A question of place names the colours and shapes of two things, and "the circle is red" also
    answers what is red. A model that can read them off learns to read, not to see.
    """
    told: set[str] = set()
    left = []
    for question in questions:
        if question.family in ("colour", "shape") and told.issuperset(question.tells):
            continue
        told.update(question.tells)
        left.append(question)
    return left


def digit_questions(digit: int, rng: np.random.Generator) -> list[Question]:
    """The questions that an image of a digit answers."""
    return [Question("digit", _pick(rng, _DIGIT), NUMBERS[digit])]


def describe_request(rng: np.random.Generator) -> str:
    """A request for a description."""
    return _pick(rng, _DESCRIBE)


def scene_caption(scene: Scene) -> str:
    """A description of a scene: its shapes from left to right, and where each lies."""
    things = sorted(scene.things, key=lambda thing: thing.x)
    parts = [f"{_article(thing.name)} {thing.name} {_where(scene, thing)}" for thing in things]
    verb, noun = ("is", "shape") if len(things) == 1 else ("are", "shapes")
    return f"There {verb} {NUMBERS[len(things)]} {noun}: {_and(parts)}."


def digit_caption(digit: int) -> str:
    """A description of an image of a digit."""
    return f"The handwritten digit {NUMBERS[digit]}."


def _places(scene: Scene, a: Thing, b: Thing, rng: np.random.Generator) -> list[Question]:
    """Questions of how two shapes lie to each other, where that is clear."""
    if rng.random() < 0.5:
        a, b = b, a
    side = (scene.width * scene.height) ** 0.5
    questions = []
    for forms, distance, words in (
        (_ACROSS, b.x - a.x, ("left", "right")),
        (_DOWN, b.y - a.y, ("above", "below")),
    ):
        if abs(distance) >= CLEARLY_APART * side:
            text = _pick(rng, forms).format(a=a.name, b=b.name)
            answer = words[0] if distance > 0 else words[1]
            questions.append(Question("place", text, answer, (a.name, b.name)))
    return questions


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def _where(scene: Scene, thing: Thing) -> str:
    """Where a shape lies, in thirds of the image."""
    across = ("left", "", "right")[min(2, int(3 * thing.x / scene.width))]
    down = ("top", "", "bottom")[min(2, int(3 * thing.y / scene.height))]
    place = f"{down} {across}".strip()
    return f"at the {place}" if place else "in the middle"


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _pick(rng: np.random.Generator, forms: tuple[str, ...]) -> str:
    return forms[int(rng.integers(len(forms)))]
