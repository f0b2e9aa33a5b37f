"""Drawing: canvases, and what is put on them. Layouts of the test split are never trained on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vora_serve.world.scenes import COLOURS, Split, draw_background, random_background
from vora_serve.world.wide.assets import Emoji, load_emoji, load_font

Point = tuple[float, float]
RGB = tuple[int, int, int]
#: Ways to place a single thing.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "train": ("centre", "left", "right", "top", "bottom"),
    "test": ("corner",),
}
_LAYOUT_PLACES: dict[str, tuple[Point, ...]] = {
    "centre": ((0.5, 0.5),),
    "left": ((0.3, 0.5),),
    "right": ((0.7, 0.5),),
    "top": ((0.5, 0.3),),
    "bottom": ((0.5, 0.7),),
    "corner": ((0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7)),
}
SIDES = (112, 224)


def canvas(rng: np.random.Generator) -> Image.Image:
    """A background of random size and texture."""
    low, high = SIDES
    width, height = (int(rng.integers(low, high + 1)) for _ in range(2))
    kind, palette, seed = random_background(rng)
    return Image.fromarray(draw_background(width, height, kind, palette, seed))


def place(rng: np.random.Generator, split: Split) -> Point:
    """Where a single thing's centre goes, as parts of width and height."""
    names = LAYOUTS["test" if split == "test" else "train"]
    places = _LAYOUT_PLACES[names[int(rng.integers(len(names)))]]
    x, y = places[int(rng.integers(len(places)))]
    return x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05)


def paste_emoji(
    image: Image.Image, emoji: Emoji, centre: Point, side: int, angle: float = 0.0
) -> None:
    """Put an emoji on an image.

    Args:
        image: changed in place.
        emoji: which.
        centre: in pixels.
        side: in pixels.
        angle: in degrees.
    """
    drawn = load_emoji(emoji.file).resize((side, side), Image.Resampling.BICUBIC)
    if angle:
        drawn = drawn.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    corner = (round(centre[0] - drawn.width / 2), round(centre[1] - drawn.height / 2))
    image.paste(drawn, corner, drawn)


def ink_for(image: Image.Image) -> RGB:
    """Black or white, whichever stands out from an image's middle."""
    grey = float(np.asarray(image.resize((1, 1)).convert("L"))[0, 0])
    return (20, 20, 20) if grey > 120 else (240, 240, 240)


def draw_word(
    image: Image.Image, word: str, font: Path, centre: Point, ink: RGB, share: float
) -> None:
    """Write a word over a share of the image's width, whole inside the image."""
    wanted = share * image.width
    size = 40
    measured = load_font(font, size).getlength(word)
    size = max(9, min(round(size * wanted / measured), round(0.6 * image.height)))
    chosen = load_font(font, size)
    left, top, right, bottom = chosen.getbbox(word)
    width, height = right - left, bottom - top
    x = min(max(centre[0] * image.width - width / 2, 2), max(2, image.width - width - 2))
    y = min(max(centre[1] * image.height - height / 2, 2), max(2, image.height - height - 2))
    ImageDraw.Draw(image).text((x - left, y - top), word, fill=ink, font=chosen)


def draw_clock(
    rng: np.random.Generator, image: Image.Image, hour: int, minute: int, split: Split
) -> None:
    """A clock face with two hands and twelve ticks."""
    centre = np.array(place(rng, split)) * image.size
    radius = 0.24 * min(image.size)
    pen = ImageDraw.Draw(image)
    face: RGB = (250, 248, 240) if rng.random() < 0.7 else (30, 32, 40)
    ink: RGB = (25, 25, 25) if face[0] > 128 else (235, 235, 235)
    pen.ellipse([*(centre - radius), *(centre + radius)], fill=face, outline=ink, width=2)
    for tick in range(12):
        direction = _direction(30.0 * tick)
        inner = 0.75 if tick % 3 == 0 else 0.86
        ends = [*(centre + inner * radius * direction), *(centre + 0.94 * radius * direction)]
        pen.line(ends, fill=ink, width=2 if tick % 3 else 3)
    hands = ((30.0 * hour + 0.5 * minute, 0.5, 5), (6.0 * minute, 0.82, 3))
    for angle, length, width in hands:
        tip = centre + length * radius * _direction(angle)
        pen.line([*centre, *tip], fill=ink, width=width)


def draw_chart(
    rng: np.random.Generator, image: Image.Image, heights: list[float], colours: list[str]
) -> None:
    """Bars of different colours on a base line.

    Args:
        rng: chooses proportions.
        image: changed in place.
        heights: of each bar, from left to right, as parts of the tallest possible.
        colours: names of their colours.
    """
    width, height = image.size
    left, right = 0.1 * width, 0.9 * width
    base, top = 0.9 * height, 0.12 * height
    slot = (right - left) / len(heights)
    filled = rng.uniform(0.5, 0.8) * slot
    pen = ImageDraw.Draw(image)
    for number, (share, colour) in enumerate(zip(heights, colours, strict=True)):
        start = left + number * slot + (slot - filled) / 2
        pen.rectangle(
            [start, base - share * (base - top), start + filled, base], fill=COLOURS[colour]
        )
    pen.line([left, base, right, base], fill=ink_for(image), width=2)


def scatter(rng: np.random.Generator, image: Image.Image, count: int, side: int) -> list[Point]:
    """Centres of things that do not touch, in pixels."""
    found: list[Point] = []
    margin = side / 2 + 2
    for _ in range(400):
        if len(found) == count:
            return found
        x = rng.uniform(margin, image.width - margin)
        y = rng.uniform(margin, image.height - margin)
        if all(max(abs(x - a), abs(y - b)) > 1.05 * side for a, b in found):
            found.append((x, y))
    # A grid always has room for them.
    columns = math.ceil(math.sqrt(count))
    steps = [(index % columns, index // columns) for index in range(count)]
    cell = (image.width / columns, image.height / columns)
    return [((c + 0.5) * cell[0], (r + 0.5) * cell[1]) for c, r in steps]


def _direction(angle: float) -> np.ndarray:
    """Unit vector of a hand, degrees clockwise from twelve."""
    turn = math.radians(angle)
    return np.array([math.sin(turn), -math.cos(turn)])
