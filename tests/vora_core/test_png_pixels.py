"""PNG files by the fast decoder: Pillow's samples, and nothing that Pillow might refuse."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vora_core.png_pixels import MAX_PIXELS, fast_pixels

WIDTH, HEIGHT = 10, 6
ROWS = b"".join(b"\0" + bytes(range(3 * WIDTH)) for _ in range(HEIGHT))
DATA = zlib.compress(ROWS)


def chunk(kind: bytes, payload: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + payload))
    return struct.pack(">I", len(payload)) + kind + payload + checksum


def png(
    data: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0, extra: bytes = b""
) -> bytes:
    """A file of 10x6 pixels, its chunks' checksums right whatever is in them."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), extra, chunk(b"IDAT", data), chunk(b"IEND", b""))
    )


def test_it_takes_an_ordinary_file() -> None:
    samples = fast_pixels(png(DATA), WIDTH, HEIGHT)
    assert samples is not None
    assert samples[0].tobytes() == bytes(range(3 * WIDTH))


@given(
    mode=st.sampled_from(["L", "RGB", "RGBA"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    smooth=st.booleans(),
    level=st.integers(0, 9),
)
def test_samples_are_pillows(
    mode: str, size: tuple[int, int], seed: int, smooth: bool, level: int
) -> None:
    """Noise, and gradients, for which encoders choose other filters."""
    width, height = size
    channels = len(mode)
    if smooth:
        ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] + np.arange(channels)
        samples = (ramp * (seed % 7)).astype(np.uint8)
    else:
        samples = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(samples[:, :, 0] if mode == "L" else samples, mode=None)
    image.save(file, "PNG", compress_level=level)
    found = fast_pixels(file.getvalue(), width, height)
    assert found is not None
    assert found.dtype == np.uint8
    assert np.array_equal(found, samples)


DAMAGED = {
    "wrong checksum of the data": DATA[:-4] + b"abcd",
    "no checksum of the data": DATA[:-4],
    "a row too few": zlib.compress(ROWS[: -1 - 3 * WIDTH]),
    "a byte too few": zlib.compress(ROWS[:-1]),
    "a row too many": zlib.compress(ROWS + ROWS[: 1 + 3 * WIDTH]),
    "a bomb": zlib.compress(bytes(50_000_000)),
    "unknown filter": zlib.compress(b"\7" + ROWS[1:]),
    "bytes behind the data": DATA + b"x",
    "no data": b"",
    "cut": DATA[: len(DATA) // 2],
    "other data": b"\0" * len(DATA),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_data_are_left_to_pillow(data: bytes) -> None:
    assert fast_pixels(png(data), WIDTH, HEIGHT) is None


UNUSUAL = {
    "palette": png(DATA, colour=3, extra=chunk(b"PLTE", bytes(768))),
    "16 bits": png(DATA, depth=16),
    "4 bits": png(DATA, depth=4, colour=0),
    "interlaced": png(DATA, interlaced=1),
    "a transparent colour": png(DATA, extra=chunk(b"tRNS", bytes(6))),
    "EXIF": png(DATA, extra=chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")),
}


@pytest.mark.parametrize("content", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_files_are_left_to_pillow(content: bytes) -> None:
    assert fast_pixels(content, WIDTH, HEIGHT) is None


def test_large_images_do_not_hold_up_streams() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    assert fast_pixels(file.getvalue(), side, side) is None
