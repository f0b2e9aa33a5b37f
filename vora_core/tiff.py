"""TIFF files: faults that libtiff reports and Pillow passes over.

libtiff goes on after bad fax codes, checks no checksum of deflated data that fills its buffer, and
turns libjpeg's warnings into its own, which Pillow switches off.
"""

from __future__ import annotations

import ctypes
import re
import threading
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from vora_core.errors import ImageRequestError
from vora_core.image_files import unreadable

_COMPRESSION, _BITS, _TABLES = 259, 258, 347
_STRIPS, _TILES = (273, 279), (324, 325)  # where each begins, and its bytes
_DEFLATE, _JPEG, _OLD_JPEG, _FAX, _FAX4 = (8, 32946), 7, 6, (2, 3, 4, 32771), 4
_JPEG_COLOURS = {1: "GRAY", 3: "RGB", 4: "CMYK"}
_PIECE = 1 << 20

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_here = threading.local()


def load_strictly(image: Any, content: bytes) -> None:
    """Decode a TIFF's first page, or refuse it.

    Args:
        image: opened by Pillow, not loaded.
        content: the file.

    Raises:
        ImageRequestError: it does not decode without fault.
    """
    compression = image.tag_v2.get(_COMPRESSION, 1)
    parts = list(_parts(image, content))
    reports = _reports_errors()
    if compression == _OLD_JPEG or (compression in _FAX and not reports):
        raise ImageRequestError("An image is a TIFF file of a compression that is not taken here.")
    if compression == _FAX4 and any(b"\0\0\0" in bytes(part).rstrip(b"\0") for part in parts):
        raise unreadable()  # no code has so many zeros; libtiff would end the page there
    if compression in _DEFLATE:
        most = 16 * image.width * image.height + _PIECE
        for part in parts:
            _require_whole_stream(part, most)
    if compression == _JPEG:
        for part in parts:
            _require_sound_jpeg(part, image.tag_v2)
    _here.errors = 0
    image.load()
    if _here.errors:
        raise unreadable()


def _parts(image: Any, content: bytes) -> Iterator[memoryview]:
    """The bytes of each strip or tile."""
    tags, view = image.tag_v2, memoryview(content)
    starts, sizes = _TILES if _TILES[0] in tags else _STRIPS
    for start, size in zip(tags[starts], tags.get(sizes, ()), strict=True):
        if start + size > len(content):
            raise unreadable()
        yield view[start : start + size]


def _require_whole_stream(part: memoryview, most: int) -> None:
    stream = zlib.decompressobj()
    rest: bytes | memoryview = part
    while not stream.eof:
        most -= len(stream.decompress(rest, _PIECE))
        rest = stream.unconsumed_tail
        if most < 0 or (not rest and not stream.eof):
            raise unreadable()


def _require_sound_jpeg(part: memoryview, tags: Any) -> None:
    import simplejpeg

    tables, whole = bytes(tags.get(_TABLES, b"")), bytes(part)
    if tables:
        whole = tables[:-2] + whole[2:]  # without the end of one and the beginning of the other
    colours = _JPEG_COLOURS[len(tags[_BITS])]
    simplejpeg.decode_jpeg(whole, colorspace=colours, strict=True)


@lru_cache(maxsize=1)
def _reports_errors() -> bool:
    """Have libtiff count its errors, by thread, instead of printing them.

    Returns:
        Whether that could be done: on Linux, whatever library Pillow uses.
    """
    from PIL import _imaging  # noqa: F401 - loads libtiff

    maps = Path("/proc/self/maps")
    found = re.search(r"/\S*libtiff[^/\s]*\.so\S*", maps.read_text() if maps.exists() else "")
    if found is None:
        return False
    ctypes.CDLL(found[0]).TIFFSetErrorHandler(_counter)
    return True


def _count(module: bytes, text: bytes, values: int) -> None:
    _here.errors = getattr(_here, "errors", 0) + 1


_counter = _Handler(_count)  # must live as long as libtiff may call it
