"""Pillow's bicubic filter for 8-bit RGB, bit for bit, compiled: two to three times as fast.

Needs numba, which vLLM brings along. Sums are 32-bit integers, rounded and clipped to 8 bits. Every
step is Pillow's own integer arithmetic, so the result is Pillow's. Columns are the fast direction;
rows are turned into columns a tile at a time, which stays in the core's cache.
"""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vora_core.bicubic_weights import Taps, UInt8Array

#: Pixels of an image from which compiling, or reading what was compiled before, is worth it.
WORTHWHILE_PIXELS = 1 << 18


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def filter_rows(image: UInt8Array, taps: Taps, result: UInt8Array, start: int, end: int) -> None:
    """Resize rows ``start`` to ``end``.

    Args:
        image: uint8 (H, W, 3 or 4), each row contiguous; a fourth channel is ignored.
        taps: what each new pixel is made of.
        result: uint8 (H, new width, 3), of which these rows are filled.
    """
    _compiled().rows(image[start:end], *taps, result[start:end])


def filter_columns(image: UInt8Array, taps: Taps, result: UInt8Array, start: int, end: int) -> None:
    """Resize each column.

    Args:
        image: uint8 (H, W, C), contiguous.
        taps: what each new pixel is made of.
        result: uint8 (new height, W, C), contiguous.
        start, end: the rows of ``result`` to fill.
    """
    bounds, weights = taps
    flat, filled = image.reshape(len(image), -1), result.reshape(len(result), -1)
    _compiled().columns(flat, bounds[start:end], weights[start:end], filled[start:end])


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """The loops; imported when first needed, since numba takes a second."""
    return import_module("vora_core.bicubic_loops")
