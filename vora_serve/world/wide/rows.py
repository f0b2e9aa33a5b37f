"""Training rows of the whole world: the wide one's samples, shapes and digits, drawn when read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vora_serve.world.digits import random_digit
from vora_serve.world.questions import digit_questions, only_seen, scene_questions
from vora_serve.world.scenes import Split, random_scene, render
from vora_serve.world.wide.assets import find_assets
from vora_serve.world.wide.samples import FAMILIES, Family, WideWorld

#: Rows of a split; a run sees fewer.
ROWS = 1 << 24
#: What rows show: a family of the wide world, a scene of shapes, or a digit.
Kind = Literal[Family, "shapes", "digits"]
#: How often each comes, unless a source says otherwise.
SHARES: dict[Kind, float] = {**dict.fromkeys(FAMILIES, 1.0), "shapes": 3.0, "digits": 1.0}
_SEED = 11
_QUESTIONS = 3


def draw_rows(
    folder: Path, split: Split, start: int, stop: int, shares: Mapping[Kind, float] = SHARES
) -> Iterator[dict[str, Any]]:
    """Rows ``start`` to ``stop``: conversations in OpenAI's form (``messages``), and ``images``.

    Args:
        folder: of the emoji, as :func:`vora_serve.world.wide.find_assets` takes it.
        split: train, validation or test; their images never meet.
        start, stop: numbers of rows; with the same shares, a number always gives the same row.
        shares: how often each kind comes; as in :data:`SHARES` where it is not said.

    Raises:
        ConfigError: emoji or fonts are missing.
    """
    world = find_world(folder, split)
    wanted = {**SHARES, **shares}
    kinds = list(wanted)
    odds = np.array(list(wanted.values())) / sum(wanted.values())
    for index in range(start, stop):
        rng = np.random.default_rng([_SEED, index, 113])
        kind = kinds[int(rng.choice(len(kinds), p=odds))]
        if kind != "shapes" and kind != "digits":
            sample = world.of_family(kind, index)
            yield {"messages": sample.messages, "images": list(sample.images)}
            continue
        if kind == "shapes":
            scene = random_scene(_SEED, split, index)
            image = render(scene)
            questions = only_seen(scene_questions(scene, rng))[:_QUESTIONS]
        else:
            drawn = random_digit(_SEED, split, index)
            image, questions = drawn.image, digit_questions(drawn.digit, rng)
        messages: list[dict[str, Any]] = []
        for question in questions:
            messages.append({"role": "user", "content": question.text})
            messages.append({"role": "assistant", "content": question.answer})
        messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": questions[0].text}]
        yield {"messages": messages, "images": [image]}


@lru_cache(maxsize=8)
def find_world(folder: Path, split: Split) -> WideWorld:
    """The world of a split; emoji and fonts are looked for once.

    Args:
        folder, split: as in :func:`draw_rows`.

    Raises:
        ConfigError: emoji or fonts are missing.
    """
    return WideWorld(find_assets(folder), _SEED, split)
