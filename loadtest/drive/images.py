"""Images to send: random, unlike each other, and about as hard to compress as photographs."""

from __future__ import annotations

import base64
import io
from typing import Literal

import numpy as np
from PIL import Image


def random_image(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An RGB image of ``size`` (width, height): smooth shades under a little noise."""
    width, height = size
    coarse = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    noise = random.normal(0, 6, (height, width, 1))
    noisy = np.asarray(smooth, dtype=np.float32) + noise
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def data_url(image: Image.Image, kind: Literal["jpeg", "png"]) -> str:
    """The image as a ``data:`` URL."""
    buffer = io.BytesIO()
    image.save(buffer, kind.upper(), **({"quality": 90} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
