"""An image for engines of which nothing is known: an ordinary file that any decoder reads alike.

A file stays what it is where that is safe; otherwise its pixels are written anew, and what came
compressed with loss leaves so: nothing grows to many times its size.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from vora_core.decoding import Decoded
from vora_serve.gateway.images.jpeg import essential_segments

_LOSSY = frozenset(("JPEG", "AVIF", "HEIF"))
_QUALITY = 95


@dataclass(frozen=True)
class CleanImage:
    """An image as an engine gets it.

    Attributes:
        content: the file, or pixels that are ready.
        media_type: of the ``data:`` URL.
        width, height: in pixels.
        source_format: Pillow's name of the format that it came in.
        tokens: LLM tokens that it becomes, where that is known.
    """

    content: bytes
    media_type: str
    width: int
    height: int
    source_format: str
    tokens: int | None = None

    def described(self) -> CleanImage:
        """The same without its content."""
        return replace(self, content=b"")


def clean(
    decoded: Decoded,
    source_format: str,
    *,
    passthrough: bool = True,
    size: tuple[int, int] | None = None,
) -> CleanImage:
    """Write an image as a clean JPEG, PNG or WebP file.

    Args:
        decoded: Its pixels.
        source_format: What it came in.
        passthrough: Leave a plain file's pixels in the encoding that they came in.
        size: Width and height to shrink to, as it is to be seen.
    """
    if passthrough and decoded.plain and size in (None, decoded.size):
        content = decoded.content
        if source_format == "JPEG":
            content = essential_segments(content)
        return CleanImage(content, f"image/{source_format.lower()}", *decoded.size, source_format)
    image = decoded.upright()
    if size is not None and size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    image.info = {}
    kind, options = _encoding(source_format, decoded)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return CleanImage(
        buffer.getvalue(), f"image/{kind.lower()}", image.width, image.height, source_format
    )


def _encoding(source_format: str, decoded: Decoded) -> tuple[str, dict[str, Any]]:
    if source_format in _LOSSY or (source_format == "WEBP" and b"VP8 " in decoded.content[:4096]):
        # With a JPEG's own tables the second rounding changes little, and the size stays.
        return "JPEG", decoded.tables or {"quality": _QUALITY, "subsampling": 0}
    return "PNG", {"compress_level": 1}
