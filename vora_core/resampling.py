"""The released resizing, byte for byte, spread over threads. Needs numpy and Pillow only.

Rows are resized first, then columns, with values rounded to 8 bits in between. Pillow up to 12 does
that in one call; Pillow 13 takes columns first where that is cheaper, which changes a few pixels in
a hundred by one step, and a model's log-probabilities with them (torch's faster uint8 kernel, which
rounds elsewhere, moved them by 0.02). So the two passes are two calls here.

Either pass may be cut into bands across it: every output pixel depends on one row, or one column,
alone. Pillow lets go of the interpreter's lock meanwhile, so the bands run on as many cores. Where
numba is installed, large images take the compiled filter of :mod:`vora_core.bicubic` instead.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image

from vora_core import bicubic
from vora_core.bicubic_weights import Taps, UInt8Array, taps
from vora_core.upright import Upright

#: Pixels of a band of rows; bounds the memory that turning and padding an image take.
BAND_PIXELS = 1 << 20
#: A smaller image is resized sooner than threads are woken.
ALONE_PIXELS = 1 << 16
#: More threads than this would mostly wait for memory.
MAX_THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


def available_threads() -> int:
    """Cores that this process may use, up to ``MAX_THREADS``."""
    if hasattr(os, "sched_getaffinity"):
        return min(MAX_THREADS, len(os.sched_getaffinity(0)))
    return min(MAX_THREADS, os.cpu_count() or 1)


def spread(work: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """``work`` of every item, in order, on up to ``threads`` threads.

    Not for use within itself: the threads are shared.
    """
    todo = list(items)
    if threads < 2 or len(todo) < 2:
        return [work(item) for item in todo]
    return list(_pool(os.getpid()).map(work, todo))


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The process's threads; a forked child makes its own."""
    return ThreadPoolExecutor(available_threads(), thread_name_prefix=f"pixels-{process}")


def resize(image: Upright, size: tuple[int, int], resample: int, threads: int) -> UInt8Array:
    """Resize an image, with Pillow's filter.

    Args:
        image: as it is to be seen.
        size: (width, height) to resize to.
        resample: Pillow's number of the filter.
        threads: how many may work on it.

    Returns:
        uint8 (height, width, 3): rows resized first, then columns.
    """
    width, height = image.size
    if width * height < ALONE_PIXELS:
        threads = 1
    rows = Image.new("RGB", (size[0], height))
    _across(image, rows, resample, threads)
    return _down(rows, size[1], resample, threads)


def resize_padded(image: Upright, edge: int, resample: int, threads: int) -> UInt8Array:
    """Centre an image on a black square and resize that, with Pillow's filter.

    The square never exists as a whole, and rows that would be black are not resized.

    Args:
        image: as it is to be seen.
        edge: side of the result, in pixels.
        resample: Pillow's number of the filter.
        threads: how many may work on it.

    Returns:
        uint8 (edge, edge, 3).
    """
    width, height = image.size
    if width == height:
        return resize(image, (edge, edge), resample, threads)
    side = max(width, height)
    rows = Image.new("RGB", (edge, side))
    _across(image, rows, resample, threads, pad=width < side)
    return _down(rows, edge, resample, threads)


def _across(
    image: Upright, rows: Image.Image, resample: int, threads: int, *, pad: bool = False
) -> None:
    """The first pass: resize each row to the width of ``rows``, in which they are centred.

    With ``pad``, each row is centred on one as long as ``rows`` is high before.
    """
    width, height = image.size
    padded_width = rows.height if pad else width
    left, top = (padded_width - width) // 2, (rows.height - height) // 2
    band = max(1, min(-(-height // threads), BAND_PIXELS // padded_width))

    def one(start: int) -> None:
        end = min(start + band, height)
        strip = image.rows(start, end)
        if pad:
            padded = Image.new("RGB", (padded_width, end - start))
            padded.paste(strip, (left, 0))
            strip = padded
        rows.paste(strip.resize((rows.width, end - start), resample=resample), (0, top + start))

    spread(one, range(0, height, band), threads)


def _down(rows: Image.Image, height: int, resample: int, threads: int) -> UInt8Array:
    """The second pass: resize each column to ``height``."""
    width = rows.width
    if threads < 2 or rows.height == height:
        return np.asarray(rows.resize((width, height), resample=resample))
    result = np.empty((height, width, 3), dtype=np.uint8)
    band = -(-width // threads)

    def one(start: int) -> None:
        end = min(start + band, width)
        strip = rows.crop((start, 0, end, rows.height))
        result[:, start:end] = np.asarray(strip.resize((end - start, height), resample=resample))

    spread(one, range(0, width, band), threads)
    return result


def resize_compiled(
    pixels: UInt8Array,
    size: tuple[int, int],
    threads: int,
    side: int | None = None,
    orientation: int = 1,
) -> UInt8Array:
    """Both passes of the compiled filter, of the pixels as they are to be seen.

    Turned pixels are never moved: the passes change places, and weights are reversed. Black around
    the image never exists.

    Args:
        pixels: uint8 (H, W, 3 or 4).
        size: (width, height) to resize to.
        threads: how many may work on it.
        side: of the black square that the image is centred on; none where absent.
        orientation: EXIF's, 1 to 8.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = pixels.shape[:2]
    swapped = orientation >= 5
    across, down = (size[1], size[0]) if swapped else size  # of the pixels as they lie
    taps_across = taps(width, side or width, across, mirrored=orientation in (2, 3, 7, 8))
    taps_down = taps(height, side or height, down, mirrored=orientation in (3, 4, 6, 7))
    if swapped:
        result = _rows(_columns(pixels, taps_down, threads), taps_across, threads)
        return np.ascontiguousarray(result.transpose(1, 0, 2))
    return _columns(_rows(pixels, taps_across, threads), taps_down, threads)


def _rows(pixels: UInt8Array, given: Taps, threads: int) -> UInt8Array:
    result = np.empty((len(pixels), len(given[0]), 3), dtype=np.uint8)
    _in_bands(lambda a, b: bicubic.filter_rows(pixels, given, result, a, b), len(pixels), threads)
    return result


def _columns(pixels: UInt8Array, given: Taps, threads: int) -> UInt8Array:
    pixels = np.ascontiguousarray(pixels)
    result = np.empty((len(given[0]), *pixels.shape[1:]), dtype=np.uint8)
    _in_bands(
        lambda a, b: bicubic.filter_columns(pixels, given, result, a, b), len(result), threads
    )
    return result


def _in_bands(work: Callable[[int, int], None], length: int, threads: int) -> None:
    band = max(1, -(-length // threads))
    spread(lambda start: work(start, min(start + band, length)), range(0, length, band), threads)


def compiled(pixels: int, resample: int) -> bool:
    """Whether the compiled filter does what is asked, and is worth its start."""
    return (
        resample == Image.Resampling.BICUBIC
        and pixels >= bicubic.WORTHWHILE_PIXELS
        and bicubic.available()
    )
