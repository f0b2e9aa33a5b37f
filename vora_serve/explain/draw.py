"""Images of attention as PNG, for papers and slides. Needs numpy and Pillow only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

#: Black, blue-violet, red, orange, light yellow: rises evenly in lightness, so that it also reads
#: in greyscale and to people who see few colours.
_STOPS = np.array(
    [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]],
    dtype=np.float64,
)


def colours(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Values in 0..1, any shape, to RGB with a last dimension of 3."""
    place = np.clip(values, 0, 1) * (len(_STOPS) - 1)
    low = np.minimum(place.astype(int), len(_STOPS) - 2)
    part = (place - low)[..., None]
    colours = _STOPS[low] * (1 - part) + _STOPS[low + 1] * part
    rounded: np.ndarray = (colours + 0.5).astype(np.uint8)
    return rounded


def overlay(image: Image.Image, weights: npt.NDArray[np.floating], side: int = 672) -> Image.Image:
    """An image as the model got it, dimmed, with each patch coloured by its weight.

    Args:
        image: at the served size.
        weights: (rows, columns), 0 or above; the largest one gets the brightest colour.
        side: long side of the result, in pixels.
    """
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    base = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float64)
    scaled = weights / max(float(weights.max()), 1e-12)
    heat = Image.fromarray(colours(scaled)).resize(size, Image.Resampling.NEAREST)
    alpha = Image.fromarray((scaled * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    share = 0.08 + 0.72 * np.asarray(alpha, np.float64)[..., None] / 255
    grey = base.mean(axis=2, keepdims=True) * 0.5 + base * 0.5
    mixed = grey * (1 - share) + np.asarray(heat, np.float64) * share
    return Image.fromarray(np.clip(mixed + 0.5, 0, 255).astype(np.uint8))


def sheet(images: list[Image.Image], columns: int, gap: int = 8) -> Image.Image:
    """Images of one size side by side on white, row by row."""
    width, height = images[0].size
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    page = Image.new(
        "RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255)
    )
    for index, image in enumerate(images):
        page.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return page
