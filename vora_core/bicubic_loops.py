"""The compiled loops of :mod:`vora_core.bicubic`. Importing this imports numba."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from vora_core.bicubic_weights import PRECISION, Int32Array, UInt8Array

_TILE = 32
_HALF = 1 << (PRECISION - 1)


def _compile(function: Callable[..., None]) -> Any:
    """Compile at the first call; keep the result on disk where there is a place to write."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # a file system without one
        return numba.njit(nogil=True)(function)


def _rows(image: UInt8Array, bounds: Int32Array, weights: Int32Array, result: UInt8Array) -> None:
    height, width, _ = image.shape
    tile = np.empty((width, _TILE * 3), np.uint8)
    sums = np.empty(_TILE * 3, np.int32)
    for top in range(0, height, _TILE):
        rows = min(_TILE, height - top)
        for y in range(rows):
            for x in range(width):
                for c in range(3):
                    tile[x, 3 * y + c] = image[top + y, x, c]
        for x in range(len(bounds)):
            sums[:] = _HALF
            for tap in range(bounds[x, 1]):
                weight, source = weights[x, tap], tile[bounds[x, 0] + tap]
                for i in range(_TILE * 3):
                    sums[i] += weight * np.int32(source[i])
            for y in range(rows):
                for c in range(3):
                    result[top + y, x, c] = min(max(sums[3 * y + c] >> PRECISION, 0), 255)


def _columns(
    image: UInt8Array, bounds: Int32Array, weights: Int32Array, result: UInt8Array
) -> None:
    width = image.shape[1]
    sums = np.empty(width, np.int32)
    for y in range(len(bounds)):
        sums[:] = _HALF
        for tap in range(bounds[y, 1]):
            weight, source = weights[y, tap], image[bounds[y, 0] + tap]
            for i in range(width):
                sums[i] += weight * np.int32(source[i])
        for i in range(width):
            result[y, i] = min(max(sums[i] >> PRECISION, 0), 255)


rows = _compile(_rows)
columns = _compile(_columns)
