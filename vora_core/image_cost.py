"""The memory that decoding an image takes, known from its header: bytes for each of its pixels.

Measured with libjpeg-turbo, libpng, libwebp, libavif, libheif and libtiff as Pillow uses them.
"""

from __future__ import annotations

from typing import Any

#: What Pillow holds of a pixel, by mode; 4 where absent.
_HELD = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_RGB = 4  # Pillow pads it
#: PNG's colour types: grey, RGB, palette, grey with alpha, RGB with alpha.
_PNG = {0: 1, 2: 4, 3: 1, 4: 4, 6: 4}


def of_jpeg(image: Any, content: bytes) -> float:
    """Its pixels; where it comes in several scans, all its coefficients too.

    Args:
        image: opened by Pillow, not loaded.
        content: the file.
    """
    held = 3 if image.mode in ("RGB", "L") else 2 * _RGB
    # Pillow has read the header of the first scan; its fifth byte is the number of its colours.
    scan = content.rfind(b"\xff\xda", 0, image.fp.tell())
    if "progressive" not in image.info and content[scan + 4] == len(image.layer):
        return held
    layers = [(across, down) for _, across, down, _ in image.layer]
    finest = max(across for across, _ in layers) * max(down for _, down in layers)
    coefficients: float = sum(across * down for across, down in layers) / finest
    return held + 2 * coefficients


def of_png(content: bytes) -> float:
    """By its bits and colour type."""
    depth, colour = content[24], content[25]
    held = _PNG.get(colour, 4)
    if depth == 16 and colour == 0:
        held = 2
    transparent = colour in (0, 2) and content.find(b"tRNS", 0, content.find(b"IDAT")) > 0
    same = colour == 6 or (colour == 2 and not transparent)
    return held if same else held + _RGB


def of_heif(content: bytes, bits_box: bytes) -> float:
    """AVIF and HEIC: planes, then RGB twice.

    Args:
        content: the file.
        bits_box: the box that says how many bits and colours the planes have.
    """
    at = content.find(bits_box)
    if bits_box != b"av1C" or at < 0:
        return 1 + 2 * _RGB
    flags = content[at + 6] if at + 6 < len(content) else 0xFF
    colour = 2 / ((1 + bool(flags & 8)) * (1 + bool(flags & 4)))
    return (1 + colour) * (2 if flags & 0x40 else 1) + 2 * _RGB


def of_webp() -> float:
    """Its decoder keeps two frames of an animation, which any file may be."""
    return 17


def of_other(name: str, image: Any) -> float:
    """GIF, BMP and TIFF.

    Args:
        name: Pillow's name of the format.
        image: opened by Pillow, not loaded.
    """
    held = _HELD.get(image.mode, _RGB)
    result = held if image.mode in ("RGB", "RGBA") else held + _RGB
    if name == "TIFF":
        result += held  # all of it may be one strip
        if image.tag_v2.get(274, 1) != 1:
            result = max(result, 2 * _RGB)  # turned by Pillow as it is loaded
    return result
