"""The pixels of a Pillow image as an array, without a copy where they lie in one block.

Pillow hands them out over Arrow's C data interface; numpy does not read that, so its two structures
are declared here. Copying twelve megapixels takes longer than filtering them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from vora_core.bicubic_weights import UInt8Array


class _ArrowArray(ctypes.Structure):
    pass


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "nulls", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]

_pointer: Callable[[Any, bytes], int] = ctypes.pythonapi.PyCapsule_GetPointer
ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def pixels_of(image: Image.Image) -> UInt8Array:
    """The pixels of an RGB image, which must stay alive and unchanged while they are used.

    Returns:
        uint8 (H, W, 4) where Pillow gives its own memory away, the fourth channel being unused;
        else uint8 (H, W, 3), a copy.
    """
    image.load()
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):  # an older Pillow, or more than one block
        return np.asarray(image)
    array = _ArrowArray.from_address(_pointer(capsule, b"arrow_array"))
    values = array.children[0].contents
    size = image.width * image.height * 4
    if values.length != size or values.offset:
        return np.asarray(image)
    return _view(values.buffers[1], image.size, capsule)


def webp_pixels(image: Image.Image) -> UInt8Array | None:
    """The pixels of an opaque WebP file's next frame, where libwebp has put them.

    ``Image.load`` copies all of them, which takes a fifth of the time of decoding.

    Args:
        image: as it was opened, not loaded yet.

    Returns:
        uint8 (H, W, 4), the fourth channel being unused; None where there is alpha, or where Pillow
        gives no frames away.

    Raises:
        EOFError, ValueError: it does not decode.
    """
    next_frame = getattr(image, "_get_next", None)
    if next_frame is None or image.mode != "RGB":
        return None
    frame: bytes = next_frame()[0]
    if len(frame) != image.width * image.height * 4:
        raise ValueError("The frame has another size than its image.")
    # Not numpy's own view of bytes: for what is read-only, numba would compile all loops again.
    address = ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p).value
    assert address is not None
    return _view(address, image.size, frame)


def _view(address: int, size: tuple[int, int], owner: object) -> UInt8Array:
    """Four bytes a pixel at an address, as an array that keeps their owner alive."""
    width, height = size
    memory: Any = (ctypes.c_uint8 * (4 * width * height)).from_address(address)
    memory.owner = owner
    return np.frombuffer(memory, np.uint8).reshape(height, width, 4)


def image_of(pixels: UInt8Array) -> Image.Image:
    """A Pillow image of mode RGB.

    Args:
        pixels: uint8 (H, W, 3 or 4), a fourth channel being unused.
    """
    height, width, channels = pixels.shape
    if channels == 3:
        return Image.fromarray(pixels)
    return Image.frombytes("RGB", (width, height), np.ascontiguousarray(pixels), "raw", "RGBX")
