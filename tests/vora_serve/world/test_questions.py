"""Answers are right by rules written here anew, questions leave no doubt, guessing is chance."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from vora_serve.world.questions import (
    CHANCE,
    FAMILIES,
    Question,
    digit_questions,
    scene_caption,
    scene_questions,
)
from vora_serve.world.scenes import COLOURS, SHAPES, Scene, Thing, random_scene
from vora_serve.world.suite import ANSWERS, GROUPS, build_suite, is_right

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def mentioned(text: str) -> list[str]:
    return re.findall("|".join([*COLOURS, *SHAPES]), text)


def solve(question: Question, scene: Scene) -> str:
    """The answer, found from the question's words; fails where they leave a doubt."""
    words = mentioned(question.text)
    if question.family == "count":
        return WORDS[len(scene.things)]
    if question.family == "place":
        first, second = (
            next(t for t in scene.things if [t.colour, t.shape] == words[i : i + 2]) for i in (0, 2)
        )
        across = "left" in question.text
        distance = second.x - first.x if across else second.y - first.y
        assert abs(distance) > 0.1 * min(scene.width, scene.height)
        return ("left" if across else "above") if distance > 0 else ("right" if across else "below")
    chosen = [t for t in scene.things if all(word in (t.colour, t.shape) for word in words)]
    assert len(chosen) == 1
    return chosen[0].colour if question.family == "colour" else chosen[0].shape


@pytest.mark.parametrize("index", range(150))
def test_answers_are_right(index: int) -> None:
    scene = random_scene(11, "train", index)
    questions = scene_questions(scene, np.random.default_rng(index))
    assert questions
    for question in questions:
        assert question.answer == solve(question, scene), question


def test_a_digit_is_asked_for_by_name() -> None:
    for digit in range(10):
        (question,) = digit_questions(digit, np.random.default_rng(digit))
        assert question.answer == WORDS[digit]


def test_a_caption_names_everything_from_left_to_right() -> None:
    things = (
        Thing("star", "orange", 80, 12, 9, 0, (245, 136, 24)),
        Thing("circle", "blue", 15, 50, 9, 0, (36, 84, 214)),
    )
    scene = Scene(100, 100, things, "plain", ((0, 0, 0), (0, 0, 0)), 0)
    assert scene_caption(scene) == (
        "There are two shapes: a blue circle at the left and an orange star at the top right."
    )


def test_the_suite_is_balanced_held_out_and_repeatable() -> None:
    suite = build_suite(40)
    assert Counter(item.group for item in suite) == dict.fromkeys(GROUPS, 40)
    for family in FAMILIES:
        counts = Counter(item.answer for item in suite if item.group == family)
        assert set(counts) == set(ANSWERS[family])
        assert max(counts.values()) - min(counts.values()) <= 1
        always = max(counts.values()) / 40
        # Always saying the same word gains no more than guessing does, but for rounding.
        assert always <= CHANCE[family] + 1 / 40
    again = build_suite(40)
    assert [(i.question, i.answer) for i in suite] == [(i.question, i.answer) for i in again]
    assert suite[0].image.tobytes() == again[0].image.tobytes()
    assert build_suite(5, seed=1)[0].image.tobytes() != suite[0].image.tobytes()


def test_a_blank_item_differs_in_its_image_only() -> None:
    item = build_suite(1)[0]
    blank = item.blank()
    assert (blank.question, blank.answer, blank.group) == (item.question, item.answer, item.group)
    assert blank.image.size == item.image.size
    assert blank.image.tobytes() != item.image.tobytes()


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("circle", "circle", True),
        (" A circle.\n", "circle", True),
        ("7", "seven", True),
        ("Seven", "seven", True),
        ("circle or square", "circle", False),
        ("left right", "left", False),
        ("", "red", False),
        ("reddish", "red", False),
    ],
)
def test_what_counts_as_right(said: str, answer: str, right: bool) -> None:
    assert is_right(said, answer) is right
