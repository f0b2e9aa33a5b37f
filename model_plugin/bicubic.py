"""Pillow's bicubic filter for 8-bit RGB, bit for bit, compiled: two to three times as fast.

Needs numba, which vLLM brings along. Coefficients are those of Pillow's ``Resample.c``: bicubic
with a = -0.5, widened by the scale where an image shrinks, normalised in double precision, then
rounded to 22 binary places; sums are 32-bit integers, rounded and clipped to 8 bits. Every step is
the same integer arithmetic, so the result is too. Columns are the fast direction; rows are turned
into columns a tile at a time, which stays in the core's cache.
"""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]

#: Bits after the binary point: what 32 bits leave beside 8 of a value and 2 for overshoot.
PRECISION = 22
#: Pixels of an image from which compiling, or reading what was compiled before, is worth it.
WORTHWHILE_PIXELS = 1 << 18
_SUPPORT = 2.0
_A = -0.5
_TILE = 32


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


@lru_cache(maxsize=256)
def coefficients(size: int, new_size: int) -> tuple[Int32Array, Int32Array]:
    """Weights of the filter, as Pillow computes them.

    Args:
        size: pixels of a row or column.
        new_size: of the result's.

    Returns:
        int32 (new_size, 2): first pixel and number of pixels that each new one is made of; int32
        (new_size, most pixels): their weights times 2^22.
    """
    scale = size / new_size
    widened = max(scale, 1.0)
    support, inverse = _SUPPORT * widened, 1.0 / widened
    centre = (np.arange(new_size) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0)
    count = np.minimum(np.trunc(centre + support + 0.5), size) - first
    tap = np.arange(int(np.ceil(support)) * 2 + 1)
    distance = np.abs((tap + first[:, None] - centre[:, None] + 0.5) * inverse)
    near = ((_A + 2.0) * distance - (_A + 3.0)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * _A
    raw = np.where(distance < 1.0, near, np.where(distance < _SUPPORT, far, 0.0))
    raw[tap >= count[:, None]] = 0.0
    # One after the other, as Pillow adds: np.sum adds in pairs.
    weights = raw * (1.0 / np.cumsum(raw, axis=1)[:, -1:])
    bounds = np.stack([first, count], axis=1).astype(np.int32)
    scaled = weights * (1 << PRECISION)
    return bounds, np.trunc(scaled + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)


def filter_rows(image: UInt8Array, width: int) -> UInt8Array:
    """Resize each row.

    Args:
        image: uint8 (H, W, 3), contiguous.
        width: of the result.

    Returns:
        uint8 (H, width, 3).
    """
    if image.shape[1] == width:
        return image
    result = np.empty((image.shape[0], width, 3), dtype=np.uint8)
    _compiled().rows(image, *coefficients(image.shape[1], width), result)
    return result


def filter_columns(image: UInt8Array, result: UInt8Array, start: int, end: int) -> None:
    """Resize each column.

    Args:
        image: uint8 (H, W, 3), contiguous.
        result: uint8 (height, W, 3), contiguous.
        start, end: the rows of ``result`` to fill.
    """
    if image.shape[0] == result.shape[0]:
        result[start:end] = image[start:end]
        return
    bounds, weights = coefficients(image.shape[0], result.shape[0])
    flat, filled = image.reshape(len(image), -1), result.reshape(len(result), -1)
    _compiled().columns(flat, bounds[start:end], weights[start:end], filled[start:end])


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """The loops; imported when first needed, since numba takes a second."""
    return import_module("model_plugin.bicubic_loops")
