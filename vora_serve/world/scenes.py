"""Images of a small world: coloured shapes on varied backgrounds, at many sizes.

A :class:`Scene` is a description (what is where, on which background); :func:`render` turns it
into pixels. Both are pure functions of a seed, a split and an index, so a scene that was held out
can be drawn again anywhere, and the splits can never share a random stream. Needs numpy and
Pillow only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "validation", "test"]
_SPLIT_KEYS: dict[str, int] = {"train": 1, "validation": 2, "test": 3}

# sRGB, 0..255. Hues are far enough apart that the jitter below never makes two of them meet.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "orange": (245, 136, 24),
    "yellow": (246, 222, 42),
    "green": (38, 158, 62),
    "blue": (36, 84, 214),
    "purple": (142, 46, 170),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")
MAX_OBJECTS = 4
_COLOUR_JITTER = 12
_SUPERSAMPLING = 3
_TRIES = 40
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "stripes", "checks", "grain")


@dataclass(frozen=True)
class Thing:
    """One shape of a scene.

    Attributes:
        shape: one of :data:`SHAPES`.
        colour: one of the keys of :data:`COLOURS`.
        x, y: centre in pixels, from the left and from the top.
        radius: size in pixels; a circle's radius, and of the other shapes what looks as large.
        angle: rotation in radians.
        rgb: the fill, sRGB 0..255: the colour's own value with a little jitter.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Colour and shape, as people say it: ``red circle``."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    Attributes:
        width, height: pixels.
        things: one to :data:`MAX_OBJECTS` shapes, not overlapping.
        background: one of :data:`BACKGROUNDS`.
        palette: two sRGB colours that the background is made from, greyish.
        texture_seed: seed of the background's grain and phase.
    """

    width: int
    height: int
    things: tuple[Thing, ...]
    background: str
    palette: tuple[tuple[int, int, int], tuple[int, int, int]]
    texture_seed: int


def stream(seed: int, split: Split, index: int) -> np.random.Generator:
    """The random stream of one sample; different for every (seed, split, index)."""
    return np.random.default_rng([_SPLIT_KEYS[split], seed, index])


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels: area log-uniform over 88^2..208^2, aspect ratio 1:1.6..1.6:1."""
    side = math.exp(rng.uniform(math.log(88), math.log(208)))
    ratio = math.exp(rng.uniform(-math.log(1.6), math.log(1.6)))
    return round(side * math.sqrt(ratio)), round(side / math.sqrt(ratio))


def random_background(
    rng: np.random.Generator,
) -> tuple[str, tuple[tuple[int, int, int], tuple[int, int, int]], int]:
    """A kind, two similar greyish colours (dark, middle or light) and a texture seed."""
    level = rng.uniform(20, 245)
    first = np.clip(level + rng.uniform(-14, 14, 3), 0, 255)
    second = np.clip(
        first + rng.choice((-1.0, 1.0)) * rng.uniform(10, 34) + rng.uniform(-6, 6, 3), 0, 255
    )
    palette = (_rgb(first), _rgb(second))
    return str(rng.choice(BACKGROUNDS)), palette, int(rng.integers(2**31))


def random_scene(seed: int, split: Split, index: int, *, count: int | None = None) -> Scene:
    """Draw a scene.

    Args:
        seed: of the whole set.
        split: which set; the streams of two splits are disjoint.
        index: of the scene within the set.
        count: number of shapes; uniform over 1..4 when None.

    Returns:
        The scene. Shapes do not overlap, lie wholly inside the image, and no two are alike in
        both colour and shape.
    """
    rng = stream(seed, split, index)
    width, height = random_size(rng)
    number = int(rng.integers(1, MAX_OBJECTS + 1)) if count is None else count
    background, palette, texture_seed = random_background(rng)
    things: list[Thing] = []
    while len(things) < number:
        things = _place(rng, width, height, number)
    return Scene(width, height, tuple(things), background, palette, texture_seed)


def _place(rng: np.random.Generator, width: int, height: int, number: int) -> list[Thing]:
    """Try to place ``number`` shapes; a shorter list says that there was no room."""
    unit = math.sqrt(width * height)
    smallest, largest = (0.16, 0.23) if number < 3 else (0.14, 0.17)  # as parts of the unit
    largest = min(largest, 0.3 * min(width, height) / unit)
    kinds = rng.permutation(len(COLOURS) * len(SHAPES))[:number]
    if rng.random() < 0.5:  # half of the scenes: every colour and every shape at most once
        kinds = (
            rng.permutation(len(COLOURS))[:number] * len(SHAPES)
            + rng.permutation(len(SHAPES))[:number]
        )
    names = list(COLOURS)
    placed: list[Thing] = []
    for kind in kinds:
        colour, shape = names[int(kind) // len(SHAPES)], SHAPES[int(kind) % len(SHAPES)]
        radius = unit * rng.uniform(smallest, largest)
        reach = radius * _REACH[shape]
        room = np.array([width, height]) - 2 * (reach + 1)
        tries = reach + 1 + room * rng.random((_TRIES, 2))
        free = np.ones(_TRIES, bool)
        for other in placed:
            apart = reach + other.radius * _REACH[other.shape] + 0.02 * unit
            free &= np.hypot(tries[:, 0] - other.x, tries[:, 1] - other.y) > apart
        if not free.any():
            return placed
        x, y = tries[free.argmax()]
        jitter = rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, 3)
        rgb = _rgb(np.clip(np.asarray(COLOURS[colour]) + jitter, 0, 255))
        angle = rng.uniform(-0.15, 0.15)
        placed.append(Thing(shape, colour, float(x), float(y), float(radius), float(angle), rgb))
    return placed


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def _polygon(shape: str) -> np.ndarray:
    """Corners (n, 2) of a shape that looks as large as the unit circle, y pointing down."""
    if shape == "square":
        return 0.9 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    if shape == "triangle":
        turns = np.deg2rad([-90, 30, 150])
        return 1.35 * np.stack([np.cos(turns), np.sin(turns)], 1)
    if shape == "star":
        turns = np.deg2rad(-90 + 36 * np.arange(10))
        lengths = np.where(np.arange(10) % 2 == 0, 1.4, 0.5)
        return np.stack([lengths * np.cos(turns), lengths * np.sin(turns)], 1)
    if shape == "cross":
        long, arm = 1.25, 0.33
        return np.array(
            [(-arm, -long), (arm, -long), (arm, -arm), (long, -arm), (long, arm), (arm, arm),
             (arm, long), (-arm, long), (-arm, arm), (-long, arm), (-long, -arm), (-arm, -arm)]
        )  # fmt: skip
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


_POLYGONS = {shape: _polygon(shape) for shape in SHAPES if shape != "circle"}
# Farthest point from the centre, in radii.
_REACH = {shape: float(np.hypot(*points.T).max()) for shape, points in _POLYGONS.items()}
_REACH["circle"] = 1.0


def outline(thing: Thing) -> np.ndarray | None:
    """Corners (n, 2) in pixels of a shape, or None for a circle."""
    if thing.shape == "circle":
        return None
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    rotation = np.array([(cos, sin), (-sin, cos)])
    corners: np.ndarray = _POLYGONS[thing.shape] @ rotation * thing.radius + (thing.x, thing.y)
    return corners


def draw_background(
    width: int,
    height: int,
    kind: str,
    palette: tuple[tuple[int, int, int], tuple[int, int, int]],
    texture_seed: int,
) -> np.ndarray:
    """Background pixels, uint8 (height, width, 3)."""
    rng = np.random.default_rng(texture_seed)
    first, second = (np.asarray(colour, np.float32) for colour in palette)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    period = rng.uniform(0.08, 0.3) * math.sqrt(width * height)
    turn = rng.uniform(0, math.pi)
    along = xs * math.cos(turn) + ys * math.sin(turn)
    if kind == "plain":
        mix = np.zeros_like(xs)
    elif kind == "gradient":
        mix = (along - along.min()) / max(float(np.ptp(along)), 1.0)
    elif kind == "stripes":
        mix = 0.5 + 0.5 * np.sin(along * (2 * math.pi / period))
    elif kind == "checks":
        mix = ((np.floor(xs / period) + np.floor(ys / period)) % 2).astype(np.float32)
    elif kind == "grain":
        mix = rng.random((height, width), dtype=np.float32)
    else:
        raise ValueError(f"unknown background {kind!r}; known: {', '.join(BACKGROUNDS)}")
    pixels = first + mix[..., None] * (second - first)
    image: np.ndarray = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return image


def coverage(scene: Scene, thing: Thing) -> tuple[Image.Image, tuple[int, int]]:
    """How much of each pixel a shape covers.

    Returns:
        An anti-aliased mask, mode "L", 0..255, of the part of the image that holds the shape;
        and where its top left corner lies: (x, y) in pixels.
    """
    scale = _SUPERSAMPLING
    left, top, right, bottom = _box(scene, thing)
    mask = Image.new("L", ((right - left) * scale, (bottom - top) * scale), 0)
    pen = ImageDraw.Draw(mask)
    corners = outline(thing)
    if corners is None:
        x, y, radius = thing.x - left, thing.y - top, thing.radius
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse([value * scale for value in box], fill=255)
    else:
        pen.polygon([tuple(point) for point in (corners - (left, top)) * scale], fill=255)
    return mask.reduce(scale), (left, top)


def _box(scene: Scene, thing: Thing) -> tuple[int, int, int, int]:
    reach = thing.radius * _REACH[thing.shape] + 1
    return (
        max(0, math.floor(thing.x - reach)),
        max(0, math.floor(thing.y - reach)),
        min(scene.width, math.ceil(thing.x + reach)),
        min(scene.height, math.ceil(thing.y + reach)),
    )


def render(scene: Scene) -> Image.Image:
    """Draw a scene: an RGB image of ``scene.width`` x ``scene.height`` pixels."""
    image = Image.fromarray(
        draw_background(
            scene.width, scene.height, scene.background, scene.palette, scene.texture_seed
        )
    )
    for thing in scene.things:
        mask, corner = coverage(scene, thing)
        image.paste(thing.rgb, corner, mask)
    return image


def blank_like(width: int, height: int) -> Image.Image:
    """An image that shows nothing, for control runs: mid-grey RGB."""
    return Image.new("RGB", (width, height), (128, 128, 128))
