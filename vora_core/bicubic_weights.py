"""Weights of Pillow's bicubic filter, computed as its ``Resample.c`` computes them.

Bicubic with a = -0.5, widened by the scale where an image shrinks, normalised in double precision,
then rounded to 22 binary places.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Int32Array = npt.NDArray[np.int32]

#: Of each new pixel: the first pixel and the number of pixels that it is made of, int32 (N, 2), and
#: their weights times 2^22, int32 (N, most pixels).
Taps = tuple[Int32Array, Int32Array]

#: Bits after the binary point: what 32 bits leave beside 8 of a value and 2 for overshoot.
PRECISION = 22
_SUPPORT = 2.0
_A = -0.5


@lru_cache(maxsize=256)
def coefficients(size: int, new_size: int) -> Taps:
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


@lru_cache(maxsize=256)
def taps(size: int, padded: int, new_size: int, *, mirrored: bool = False) -> Taps:
    """Weights for pixels that are centred on a longer black row, or come in reverse order.

    What black contributes is nothing, so those pixels need not exist; and reversing the weights
    spares reversing the pixels. Both leave every sum as it was.

    Args:
        size: pixels of a row or column.
        padded: pixels of the black row that it is centred on, at least ``size``.
        new_size: of the result's.
        mirrored: whether the pixels come in reverse order.

    Returns:
        Weights by position among the ``size`` pixels.
    """
    bounds, weights = coefficients(padded, new_size)
    left = (padded - size) // 2
    first = np.maximum(bounds[:, 0] - left, 0)
    end = np.minimum(bounds[:, 0] + bounds[:, 1] - left, size)
    count = np.maximum(end - first, 0)
    skipped = first + left - bounds[:, 0]
    tap = np.arange(weights.shape[1])
    # Position in the row of weights of each tap, in the order of the pixels as they come.
    order = skipped[:, None] + (count[:, None] - 1 - tap if mirrored else tap)
    inside = tap < count[:, None]
    picked = np.take_along_axis(weights, np.where(inside, order, 0), axis=1)
    if mirrored:
        first = size - first - count
    first = np.where(count > 0, first, 0)
    return (
        np.stack([first, count], axis=1).astype(np.int32),
        np.where(inside, picked, 0).astype(np.int32),
    )
