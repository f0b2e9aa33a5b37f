"""Held-out questions about the wide world."""

from __future__ import annotations

from collections import Counter
from itertools import count

from vora_serve.world.suite import SUITE_SEED, Item
from vora_serve.world.wide.assets import Assets
from vora_serve.world.wide.samples import FAMILIES, Family, WideWorld

#: Families whose answers are few, and how many: each is right equally often, but for a remainder.
_FEW: dict[Family, int] = {"chart": 6, "count": 6, "pair": 2}


def build_wide_suite(assets: Assets, per_family: int, seed: int = SUITE_SEED) -> list[Item]:
    """Draw the questions, all of them from the test split.

    Args:
        assets: emoji and fonts.
        per_family: questions of each family.
        seed: of the images.
    """
    world = WideWorld(assets, seed, "test")
    items: list[Item] = []
    for family in FAMILIES:
        most = -(-per_family // _FEW[family]) if family in _FEW else per_family
        answers: Counter[str] = Counter()
        for index in count():
            sample = world.of_family(family, index)
            if answers[sample.answer] < most:
                answers[sample.answer] += 1
                images, asked = sample.images, sample.question
                items.append(Item(family, images, asked, sample.answer, sample.chance))
            if answers.total() == per_family:
                break
    return items
