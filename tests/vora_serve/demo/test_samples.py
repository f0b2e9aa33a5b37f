"""Conversations are about their images, the same every time, and asked as often as is wanted."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vora_serve.demo.samples import Images, by_weight, only_seen
from vora_serve.world.questions import Question, scene_questions
from vora_serve.world.scenes import random_scene


def test_weights_decide_what_is_asked_first_and_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    firsts: Counter[str] = Counter()
    for index in range(300):
        asked = scene_questions(random_scene(0, "train", index, count=4), rng)
        ordered = by_weight(asked, {"colour": 6.0, "shape": 1.0, "count": 1.0, "place": 2.0}, rng)
        assert Counter(ordered) == Counter(asked)
        if {"colour", "shape"} <= {question.family for question in asked}:
            firsts[ordered[0].family] += 1
    total = sum(firsts.values())
    assert total > 150
    assert 0.5 < firsts["colour"] / total < 0.7
    assert 0.12 < firsts["place"] / total < 0.29


def test_samples_repeat_and_keep_to_their_limit() -> None:
    images = Images(4, max_questions=1, text_share=0.0)
    for index in range(30):
        first, again = images[index], images[index]
        assert first.messages == again.messages
        assert first.images[0].tobytes() == again.images[0].tobytes()
        assert len(first.images) == 1
        assert len(first.messages) <= 4  # a question, perhaps a description, and their answers


def test_no_question_is_answered_by_the_conversation_before_it() -> None:
    place = Question("place", "Is the red star left or ...?", "left", ("red star", "blue cross"))
    colour = Question("colour", "What colour is the star?", "red", ("red star",))
    shape = Question("shape", "What shape is the red one?", "star", ("red star",))
    other = Question("shape", "What shape is the green one?", "circle", ("green circle",))
    count = Question("count", "How many shapes are there?", "three")
    assert only_seen([place, colour, other, shape, count]) == [place, other, count]
    assert only_seen([colour, place, shape]) == [colour, place]
    for index in range(40):
        messages = Images(5, text_share=0.0, digit_share=0.0)[index].messages
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        # A description tells everything, so it comes last.
        assert not any(answer.startswith("There ") for answer in answers[:-1])
