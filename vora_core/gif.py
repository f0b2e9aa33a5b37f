"""GIF files: whether they are there to their end. Pillow shows what there is of a frame."""

from __future__ import annotations

from vora_core.image_files import unreadable

_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B


def require_end(content: bytes) -> None:
    """Walk over all frames to the end. What follows it does no harm.

    Raises:
        ImageRequestError, IndexError: the file ends before it, or is no GIF.
    """
    at = 13 + _table_bytes(content[10])
    while content[at] != _TRAILER:
        if content[at] == _EXTENSION:
            at = _after_blocks(content, at + 2)
        elif content[at] == _IMAGE:
            at += 10 + _table_bytes(content[at + 9])
            at = _after_blocks(content, at + 1)
        else:
            raise unreadable()


def _table_bytes(flags: int) -> int:
    return 3 << (1 + (flags & 7)) if flags & 0x80 else 0


def _after_blocks(content: bytes, at: int) -> int:
    """Where the sub-blocks that begin here end."""
    while size := content[at]:
        at += 1 + size
    return at + 1
