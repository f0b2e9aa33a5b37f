"""Samples of the wide world: one or two images, and a question with its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from vora_serve.world.questions import NUMBERS
from vora_serve.world.scenes import COLOURS, Split, stream
from vora_serve.world.wide import draw
from vora_serve.world.wide.assets import Assets, Emoji
from vora_serve.world.wide.words import WORDS

Family = Literal["emoji", "flag", "word", "clock", "chart", "count", "pair"]
FAMILIES: tuple[Family, ...] = ("emoji", "flag", "word", "clock", "chart", "count", "pair")
#: Things that are counted: one to so many.
MOST = 6
_OPTIONS = 4

_ASKED: dict[Family, tuple[str, ...]] = {
    "emoji": ("What is this: {options}?", "Which of these is in the picture: {options}?"),
    "flag": ("Which country's flag is this: {options}?", "Whose flag is it: {options}?"),
    "word": ("What word is written here?", "Read the word.", "What does it say?"),
    "clock": ("What time is it?", "What time does the clock show?", "Read the clock."),
    "chart": ("Which colour is the {most} bar?", "What colour has the {most} bar?"),
    "count": ("How many emoji are there?", "Count the emoji.", "How many do you see?"),
    "pair": ("Do both pictures show the same thing?", "Is it the same thing in both pictures?"),
}


@dataclass(frozen=True)
class WideSample:
    """One question about one image, or two.

    Attributes:
        family: of the question.
        images: RGB.
        question: as a user asks it.
        answer: lower case.
        chance: share of right answers of somebody who guesses.
    """

    family: Family
    images: tuple[Image.Image, ...]
    question: str
    answer: str
    chance: float

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in OpenAI's form, images before the question."""
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in self.images]
        parts.append({"type": "text", "text": self.question})
        return [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": self.answer},
        ]


class WideWorld:
    """Samples by number; the same number gives the same sample.

    Args:
        assets: emoji and fonts.
        seed: of the whole set.
        split: streams of two splits never meet. The test split has fonts, layouts, and counted and
            compared emoji of its own.
        weights: how often each family comes, 1 where it is not said.
    """

    def __init__(
        self,
        assets: Assets,
        seed: int,
        split: Split = "train",
        weights: Mapping[Family, float] | None = None,
    ) -> None:
        self.assets, self.seed, self.split = assets, seed, split
        given = weights or {}
        shares = np.array([given.get(family, 1.0) for family in FAMILIES], float)
        self._shares = shares / shares.sum()
        self._fonts = assets.fonts_of(split)
        self._countable = assets.countable(split)

    def __getitem__(self, index: int) -> WideSample:
        """The sample at ``index``."""
        rng = stream(self.seed, self.split, index)
        return self._draw(FAMILIES[int(rng.choice(len(FAMILIES), p=self._shares))], rng)

    def of_family(self, family: Family, index: int) -> WideSample:
        """The sample of a family at ``index``."""
        rng = np.random.default_rng([int(stream(self.seed, self.split, index).integers(2**31)), 3])
        return self._draw(family, rng)

    def _draw(self, family: Family, rng: np.random.Generator) -> WideSample:
        question, answer, chance, images = {
            "emoji": self._emoji,
            "flag": self._flag,
            "word": self._word,
            "clock": self._clock,
            "chart": self._chart,
            "count": self._count,
            "pair": self._pair,
        }[family](rng)
        return WideSample(family, images, question, answer, chance)

    def _emoji(self, rng: np.random.Generator) -> _Drawn:
        return self._named("emoji", self.assets.emoji, rng)

    def _flag(self, rng: np.random.Generator) -> _Drawn:
        return self._named("flag", self.assets.flags, rng)

    def _named(self, family: Family, known: tuple[Emoji, ...], rng: np.random.Generator) -> _Drawn:
        """One of a few names is right; names are asked for in any order."""
        picked = [known[i] for i in rng.choice(len(known), _OPTIONS, replace=False)]
        right = picked[int(rng.integers(_OPTIONS))]
        names = [emoji.name for emoji in picked]
        options = f"{', '.join(names[:-1])} or {names[-1]}"
        question = _pick(rng, _ASKED[family]).format(options=options)
        return question, right.name, 1 / _OPTIONS, (self._single(rng, right),)

    def _single(self, rng: np.random.Generator, emoji: Emoji) -> Image.Image:
        image = draw.canvas(rng)
        x, y = draw.place(rng, self.split)
        side = round(rng.uniform(0.34, 0.48) * min(image.size))
        angle = float(rng.uniform(-12, 12))
        draw.paste_emoji(image, emoji, (x * image.width, y * image.height), side, angle)
        return image

    def _word(self, rng: np.random.Generator) -> _Drawn:
        word = _pick(rng, WORDS)
        image = draw.canvas(rng)
        font = self._fonts[int(rng.integers(len(self._fonts)))]
        shown = word if rng.random() < 0.6 else word.upper()
        centre, share = draw.place(rng, self.split), float(rng.uniform(0.5, 0.9))
        draw.draw_word(image, shown, font, centre, draw.ink_for(image), share)
        return _pick(rng, _ASKED["word"]), word, 1 / len(WORDS), (image,)

    def _clock(self, rng: np.random.Generator) -> _Drawn:
        hour, minute = int(rng.integers(1, 13)), 5 * int(rng.integers(12))
        image = draw.canvas(rng)
        draw.draw_clock(rng, image, hour, minute, self.split)
        return _pick(rng, _ASKED["clock"]), f"{hour}:{minute:02d}", 1 / 144, (image,)

    def _chart(self, rng: np.random.Generator) -> _Drawn:
        names = list(COLOURS)
        number = int(rng.integers(3, 6))
        colours = [names[i] for i in rng.choice(len(names), number, replace=False)]
        # A tenth apart, so that nobody has to measure.
        heights = (0.15 + 0.12 * rng.choice(8, number, replace=False)).tolist()
        most = "tallest" if rng.random() < 0.5 else "shortest"
        right = int(np.argmax(heights) if most == "tallest" else np.argmin(heights))
        image = draw.canvas(rng)
        draw.draw_chart(rng, image, heights, colours)
        question = _pick(rng, _ASKED["chart"]).format(most=most)
        return question, colours[right], 1 / len(names), (image,)

    def _count(self, rng: np.random.Generator) -> _Drawn:
        number = int(rng.integers(1, MOST + 1))
        emoji = self._countable[int(rng.integers(len(self._countable)))]
        image = draw.canvas(rng)
        side = round(rng.uniform(0.18, 0.26) * min(image.size))
        for centre in draw.scatter(rng, image, number, side):
            draw.paste_emoji(image, emoji, centre, side)
        return _pick(rng, _ASKED["count"]), NUMBERS[number], 1 / MOST, (image,)

    def _pair(self, rng: np.random.Generator) -> _Drawn:
        first, second = (
            self._countable[i] for i in rng.choice(len(self._countable), 2, replace=False)
        )
        same = bool(rng.random() < 0.5)
        images = (self._single(rng, first), self._single(rng, first if same else second))
        return _pick(rng, _ASKED["pair"]), "yes" if same else "no", 1 / 2, images


_Drawn = tuple[str, str, float, tuple[Image.Image, ...]]


def _pick(rng: np.random.Generator, forms: tuple[str, ...]) -> str:
    return forms[int(rng.integers(len(forms)))]
