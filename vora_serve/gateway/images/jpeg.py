"""JPEG files without what does not decide their pixels: metadata, thumbnails, what trails them."""

from __future__ import annotations

import re

from vora_core.image_files import unreadable

# In entropy-coded data, 0xFF is followed by a zero, or by a restart marker.
_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_END, _SCAN, _COMMENT = 0xD9, 0xDA, 0xFE
#: APP0 (JFIF) and APP14 (Adobe) say which colours the numbers mean.
_METADATA = frozenset(range(0xE1, 0xF0)) - {0xEE} | {_COMMENT}


def essential_segments(content: bytes) -> bytes:
    """The first image of a file, bit for bit, without its metadata.

    Raises:
        ImageRequestError: its end is missing.
    """
    kept, at = [content[:2]], 2
    while True:
        found = _NEXT_MARKER.search(content, at)
        if found is None:
            raise unreadable()
        kind, start = found[1][0], found.end() - 2
        if start > at:
            kept.append(content[at:start])  # the data of a scan
        if kind == _END:
            kept.append(b"\xff\xd9")
            return b"".join(kept)
        at = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        if at > len(content):
            raise unreadable()
        if kind not in _METADATA:
            kept.append(content[start:at])
