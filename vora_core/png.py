"""PNG files: every checksum verified, everything but the first frame's pixels left out.

Pillow checks no checksum of pixel data, and refuses a file whose text or colour profile is large,
although neither changes a pixel.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from vora_core.image_files import unreadable

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LAST = b"IEND"
#: What decides pixels, beside the critical chunks.
_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))


def essential_chunks(content: bytes) -> bytes:
    """The file with nothing in it but its pixels, palette, transparency and EXIF.

    Returns:
        ``content`` itself where there was nothing else.

    Raises:
        ImageRequestError: a checksum is wrong, a chunk is cut off or the end is missing.
    """
    view = memoryview(content)
    kept: list[memoryview] = [view[:8]]
    for kind, chunk in _chunks(view):
        if kind not in _KEPT:
            if not kind[0] & 0x20:  # critical, and unknown
                raise unreadable()
            continue
        if kind == b"eXIf" and not _is_sound(chunk):
            continue
        if not _is_sound(chunk):
            raise unreadable()
        kept.append(chunk)
    size = sum(len(part) for part in kept)
    return content if size == len(content) else b"".join(kept)


def _chunks(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and bytes, length and checksum included, of each chunk up to the last."""
    at = len(_SIGNATURE)
    while True:
        if at + 12 > len(view):
            raise unreadable()
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(view):
            raise unreadable()
        kind = bytes(view[at + 4 : at + 8])
        yield kind, view[at:end]
        if kind == _LAST:
            return
        at = end


def _is_sound(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
