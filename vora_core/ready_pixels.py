"""Pixels on their way to an engine: resized to the final grid, 8 bits, not compressed.

The container is a portable pixmap (``P6``), which any decoder reads. A comment in its header says
that the pixels are what the model's own pipeline makes of the image, and by which settings: an
engine with the same settings takes them as they are, any other treats them as an ordinary image.
Needs neither numpy nor Pillow.
"""

from __future__ import annotations

import re

from vora_core.geometry import ImageSettings

#: Key of a model card under which an engine announces its image settings.
ANNOUNCEMENT = "vora_images"
MEDIA_TYPE = "image/x-portable-pixmap"
_HEADER = re.compile(rb"P6\n# vora ([\w ./-]{1,80})\n(\d{1,6}) (\d{1,6})\n255\n")


def tag(settings: ImageSettings) -> str:
    """What two sides must agree on: everything that decides pixels, but for bounds on the size."""
    parts = [settings.resolution, settings.patch_size, settings.merge_size, settings.resample]
    if settings.resolution == "fixed":
        parts += [settings.image_size, settings.resize_edge]
    return " ".join(str(part) for part in parts)


def pack(rgb: bytes, size: tuple[int, int], settings: ImageSettings) -> bytes:
    """Pixels in their container.

    Args:
        rgb: three bytes a pixel, row-major.
        size: (width, height).
        settings: what they were resized by.
    """
    return b"P6\n# vora %s\n%d %d\n255\n" % (tag(settings).encode(), *size) + rgb


def unpack(content: bytes, settings: ImageSettings) -> tuple[memoryview, tuple[int, int]] | None:
    """The pixels and their (width, height), or None where they are not ready for these settings."""
    found = _HEADER.match(content)
    if found is None or found[1].decode() != tag(settings):
        return None
    width, height = int(found[2]), int(found[3])
    rgb = memoryview(content)[found.end() :]
    if len(rgb) != 3 * width * height or not _fits(width, height, settings):
        return None
    return rgb, (width, height)


def _fits(width: int, height: int, settings: ImageSettings) -> bool:
    unit = settings.unit
    if settings.resolution == "fixed":
        side = settings.image_size // unit * unit
        return (width, height) == (side, side)
    whole = width > 0 and height > 0 and width % unit == 0 and height % unit == 0
    return whole and width * height <= settings.max_pixels
