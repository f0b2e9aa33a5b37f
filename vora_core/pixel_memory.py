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
    memory: Any = (ctypes.c_uint8 * size).from_address(values.buffers[1])
    memory.owner = capsule  # the view keeps the capsule, and that the block
    return np.frombuffer(memory, np.uint8).reshape(image.height, image.width, 4)
