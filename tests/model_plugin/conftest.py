"""Images and checkpoints that the tests of the architecture share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import FIXTURES, write_checkpoint

Make = Callable[..., Path]


def open_image(name: str) -> Image.Image:
    """An image of the released fixtures, in memory."""
    with Image.open(FIXTURES / name) as image:
        return image.convert("RGB")


def noise_image(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth random image: noise of a few pixels, blown up."""
    rng = np.random.default_rng([seed, width, height])
    coarse = rng.integers(0, 256, (max(2, height // 9), max(2, width // 9), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``write_checkpoint`` by its options alone; the same options give the same folder."""
    known: dict[str, Path] = {}

    def make(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in known:
            known[key] = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **options)
        return known[key]

    return make
