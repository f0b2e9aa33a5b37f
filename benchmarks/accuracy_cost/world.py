"""What all systems share: training samples by number, and held-out questions by family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.training.world import COUNTS, QUESTIONS, SEED
from vora_serve.demo.samples import conversation
from vora_serve.training import Sample
from vora_serve.world.questions import (
    CHANCE,
    NUMBERS,
    Family,
    scene_caption,
    scene_questions,
)
from vora_serve.world.scenes import COLOURS, SHAPES, random_scene, render
from vora_serve.world.suite import Item

#: Right answers of each family, all equally often; chance is one over their number.
ANSWERS: dict[Family, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "count": NUMBERS[1:3],
    "place": ("left", "right", "above", "below"),
}
_TEXT_SHARE = 0.1
_HELD_OUT = 900_000


@dataclass(frozen=True)
class Samples:
    """Conversations by number: images with questions, and a tenth of text alone.

    Attributes:
        seed: of the run; every system of a seed gets the same samples in the same order.
        stage: number of the stage, so that two stages see different samples.
    """

    seed: int
    stage: int

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``."""
        number = index + 1_000_000 * self.stage
        rng = np.random.default_rng([SEED, self.seed, number, 107])
        count = int(rng.choice(COUNTS))
        scene = random_scene(SEED + self.seed, "train", number, count=count)
        turns = [(q.text, q.answer) for q in scene_questions(scene, rng)[:QUESTIONS]]
        if rng.random() < _TEXT_SHARE:
            first, *rest = turns
            told = (f"{scene_caption(scene)} {first[0]}", first[1])
            return Sample(conversation([told, *rest]))
        return Sample(conversation(turns, with_image=True), [render(scene)])


def held_out(per_family: int) -> list[Item]:
    """Questions about scenes of the test split, their answers balanced.

    Args:
        per_family: questions of each family.
    """
    items: list[Item] = []
    for family, answers in ANSWERS.items():
        wanted = {
            answer: (per_family + place) // len(answers)
            for place, answer in enumerate(reversed(answers))
        }
        number = _HELD_OUT
        while any(wanted.values()):
            rng = np.random.default_rng([SEED, number, 109])
            scene = random_scene(SEED, "test", number, count=int(rng.choice(COUNTS)))
            number += 1
            for question in scene_questions(scene, rng):
                if question.family == family and wanted[question.answer]:
                    wanted[question.answer] -= 1
                    chance = CHANCE[family] if family != "count" else 1 / len(answers)
                    items.append(
                        Item(family, (render(scene),), question.text, question.answer, chance)
                    )
                    break
    return items
