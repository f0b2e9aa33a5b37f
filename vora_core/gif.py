"""GIF files: whether the first frame is there to its end. Pillow shows what there is of it."""

from __future__ import annotations

from vora_core.image_files import unreadable

_IMAGE, _EXTENSION = 0x2C, 0x21


def require_whole_frame(content: bytes) -> None:
    """Walk to the end of the first frame.

    Raises:
        ImageRequestError, IndexError: the file ends before it, or is no GIF.
    """
    at = 13 + _table_bytes(content[10])
    while content[at] == _EXTENSION:
        at = _after_blocks(content, at + 2)
    if content[at] != _IMAGE:
        raise unreadable()
    at += 10 + _table_bytes(content[at + 9])
    _after_blocks(content, at + 1)


def _table_bytes(flags: int) -> int:
    return 3 << (1 + (flags & 7)) if flags & 0x80 else 0


def _after_blocks(content: bytes, at: int) -> int:
    """Where the sub-blocks that begin here end."""
    while size := content[at]:
        at += 1 + size
    return at + 1
