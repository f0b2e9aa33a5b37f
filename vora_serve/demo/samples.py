"""Training conversations of the demo world: images with questions, and text alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vora_serve.training import Sample
from vora_serve.world.digits import random_digit
from vora_serve.world.questions import (
    Family,
    Question,
    describe_request,
    digit_caption,
    digit_questions,
    only_seen,
    scene_caption,
    scene_questions,
)
from vora_serve.world.scenes import Split, random_scene, render

#: What people say that has nothing to do with an image.
SMALL_TALK = (
    ("Hello!", "Hello! Show me a picture of shapes or of a digit."),
    ("Hi", "Hello! Show me a picture of shapes or of a digit."),
    ("Who are you?", "I am a very small VoRA model. I know colours, shapes and digits."),
    ("What can you do?", "I can describe pictures of coloured shapes and read digits."),
    ("Thank you!", "You are welcome!"),
    ("Thanks", "You are welcome!"),
)
_SMALL_TALK_SHARE = 0.04
#: Part of the images that are described.
CAPTION_SHARE = 0.4
#: Part of the described scenes that are described at once; the others after questions about them.
AT_ONCE_SHARE = 0.5


class Images:
    """Conversations about images; the same index gives the same sample.

    Args:
        seed: of the whole set.
        split: of scenes and digits.
        digit_share: part of the images that show a digit.
        text_share: part of the samples that are text alone.
        max_questions: most questions about one image.
        family_weights: how often each family is asked about a scene, 1 where it is not said.
        shapes: number of shapes in a scene; 1 to 4 where None.
    """

    def __init__(
        self,
        seed: int,
        split: Split = "train",
        *,
        digit_share: float = 0.25,
        text_share: float = 0.1,
        max_questions: int = 4,
        family_weights: Mapping[Family, float] | None = None,
        shapes: int | None = None,
    ) -> None:
        self.seed, self.split = seed, split
        self.digit_share, self.text_share = digit_share, text_share
        self.max_questions = max_questions
        self.family_weights = family_weights or {}
        self.shapes = shapes

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``."""
        rng = np.random.default_rng([self.seed, index, 77])
        if rng.random() < self.text_share:
            return text_sample(self.seed, self.split, index, rng)
        if rng.random() < self.digit_share:
            drawn = random_digit(self.seed, self.split, index)
            turns = [(q.text, q.answer) for q in digit_questions(drawn.digit, rng)]
            if rng.random() < CAPTION_SHARE:
                turns = [(describe_request(rng), digit_caption(drawn.digit))]
            return Sample(conversation(turns, with_image=True), [drawn.image])
        scene = random_scene(self.seed, self.split, index, count=self.shapes)
        questions = by_weight(scene_questions(scene, rng), self.family_weights, rng)
        questions = only_seen(questions)[: self.max_questions]
        turns = [(q.text, q.answer) for q in questions]
        if rng.random() < CAPTION_SHARE:  # last, since it gives everything away
            # At times it must come first: else only digits are ever described at once.
            turns = [] if rng.random() < AT_ONCE_SHARE else turns
            turns.append((describe_request(rng), scene_caption(scene)))
        return Sample(conversation(turns, with_image=True), [render(scene)])


def by_weight(
    questions: list[Question], weights: Mapping[Family, float], rng: np.random.Generator
) -> list[Question]:
    """Reorder questions: a family's turn comes by its weight, however many questions it has."""
    waiting: dict[Family, list[Question]] = {}
    for question in questions:
        waiting.setdefault(question.family, []).append(question)
    ordered: list[Question] = []
    while waiting:
        families = list(waiting)
        shares = np.array([weights.get(family, 1.0) for family in families])
        family = families[int(rng.choice(len(families), p=shares / shares.sum()))]
        ordered.append(waiting[family].pop())
        if not waiting[family]:
            del waiting[family]
    return ordered


class Texts:
    """Text alone: scenes described in words, with questions about them, and small talk.

    Args:
        seed: of the whole set.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``."""
        rng = np.random.default_rng([self.seed, index, 78])
        return text_sample(self.seed, "train", index, rng)


def text_sample(seed: int, split: Split, index: int, rng: np.random.Generator) -> Sample:
    """A scene or digit in words, with questions; or small talk."""
    if rng.random() < _SMALL_TALK_SHARE:
        asked, answer = SMALL_TALK[int(rng.integers(len(SMALL_TALK)))]
        return Sample(conversation([(asked, answer)]))
    if rng.random() < 0.15:
        digit = int(rng.integers(10))
        told, questions = digit_caption(digit), digit_questions(digit, rng)
    else:
        scene = random_scene(seed, split, index)
        told, questions = scene_caption(scene), scene_questions(scene, rng)
    turns = [(question.text, question.answer) for question in questions[:6]]
    turns.insert(int(rng.integers(2)), (describe_request(rng), told))
    first, *rest = turns
    return Sample(conversation([(f"{told} {first[0]}", first[1]), *rest]))


def conversation(turns: list[tuple[str, str]], *, with_image: bool = False) -> list[dict[str, Any]]:
    """OpenAI-style messages from questions and answers; the image is part of the first question."""
    messages: list[dict[str, Any]] = []
    for number, (asked, answer) in enumerate(turns):
        content: Any = asked
        if with_image and number == 0:
            content = [{"type": "image"}, {"type": "text", "text": asked}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": answer})
    return messages
