"""Handwritten digits with a fixed split, drawn as images.

``digits.npz`` holds 1,797 samples of 8 x 8 pixels with 17 grey levels: the test set of UCI's
"Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998; CC BY 4.0), in the
order of scikit-learn's ``load_digits``. Training never uses three tenths of each class: one tenth
is for validation, two tenths are for testing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from vora_serve.world.scenes import Split, draw_background, random_background, random_size, stream

_FILE = Path(__file__).with_name("digits.npz")
_SPLIT_SEED = 20240607


@cache
def digit_indices(split: Split) -> tuple[int, ...]:
    """Rows of the data set that belong to a split: 70 % train, 10 % validation, 20 % test."""
    _, targets = _load()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(targets))
    chosen: list[int] = []
    for digit in range(10):
        rows = [int(row) for row in order if targets[row] == digit]
        low, high = round(0.7 * len(rows)), round(0.8 * len(rows))
        part = {"train": rows[:low], "validation": rows[low:high], "test": rows[high:]}[split]
        chosen.extend(part)
    return tuple(sorted(chosen))


@cache
def _rows(split: Split, digit: int) -> tuple[int, ...]:
    targets = _load()[1]
    return tuple(row for row in digit_indices(split) if targets[row] == digit)


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    with np.load(_FILE) as data:
        return data["images"].astype(np.float32) / 16.0, data["targets"].astype(np.int64)


@dataclass(frozen=True)
class DigitImage:
    """An image of one handwritten digit.

    Attributes:
        image: RGB.
        digit: 0..9.
        ink: how much of each pixel is ink: mode "L", 0..255, as large as the image.
        sample: float32 (8, 8), 0..1, the digit as the data set has it.
    """

    image: Image.Image
    digit: int
    ink: Image.Image
    sample: np.ndarray


def random_digit(seed: int, split: Split, index: int) -> DigitImage:
    """Draw an image of one handwritten digit.

    The digit is chosen class-balanced from the split's rows, enlarged smoothly, shifted, a little
    stretched and turned (in the training split more than in the others), and put as ink on a
    greyish background, dark on light or light on dark.
    """
    rng = stream(seed, split, index)
    digit = int(rng.integers(10))
    rows = _rows(split, digit)
    grey = _load()[0][rows[int(rng.integers(len(rows)))]]
    width, height = random_size(rng)
    side = min(width, height) * rng.uniform(0.7, 0.9)
    mask = _ink(grey, width, height, side, rng, strength=1.0 if split == "train" else 0.5)
    ink = np.asarray(mask, np.float32) / 255
    kind, palette, texture_seed = random_background(rng)
    backdrop = draw_background(width, height, kind, palette, texture_seed).astype(np.float32)
    level = float(np.mean(palette))
    pen = np.full(3, rng.uniform(0, 30) if level > 128 else rng.uniform(225, 255), np.float32)
    pen = np.clip(pen + rng.uniform(-10, 10, 3), 0, 255)
    pixels = backdrop + ink[..., None] * (pen - backdrop)
    image = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    return DigitImage(image, digit, mask, grey)


def _ink(
    grey: np.ndarray,
    width: int,
    height: int,
    side: float,
    rng: np.random.Generator,
    strength: float,
) -> Image.Image:
    """The digit enlarged to ``side`` pixels and moved: mode "L", 255 is ink."""
    padded = np.pad(grey, 2)
    source = Image.fromarray((padded * 255).astype(np.uint8))
    turn = strength * rng.uniform(-0.2, 0.2)
    shear = strength * rng.uniform(-0.15, 0.15)
    stretch = math.exp(strength * rng.uniform(-0.15, 0.15))
    step_x, step_y = 8 / side / stretch, 8 / side * stretch
    room_x, room_y = (width - side) / 2, (height - side) / 2
    centre_x = width / 2 + rng.uniform(-1, 1) * max(room_x, 0)
    centre_y = height / 2 + rng.uniform(-1, 1) * max(room_y, 0)
    cos, sin = math.cos(turn), math.sin(turn)
    a, b = step_x * cos, step_x * (sin + shear)
    d, e = -step_y * sin, step_y * cos
    middle = padded.shape[0] / 2
    matrix = (
        a, b, middle - a * centre_x - b * centre_y,
        d, e, middle - d * centre_x - e * centre_y,
    )  # fmt: skip
    return source.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
