"""Images to pixels: resize, crop, normalise, cut into patches. Needs numpy and Pillow only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from vora_core.bicubic_weights import UInt8Array
from vora_core.colours import to_rgb
from vora_core.geometry import ImageSettings
from vora_core.pixel_memory import pixels_of
from vora_core.resampling import compiled, resize, resize_compiled, resize_padded
from vora_core.upright import Upright

Float32Array = npt.NDArray[np.float32]


def preprocess(image: Image.Image, settings: ImageSettings) -> Float32Array:
    """Pixels as the model takes them.

    Args:
        image: any mode; put into RGB (:mod:`vora_core.colours`).
        settings: the checkpoint's image settings.

    Returns:
        float32 (3, H, W), normalised; H and W are multiples of the patch size.

    Raises:
        ImageError: the image is too small or too elongated.
    """
    rgb = resized_rgb(image, settings)
    scale, shift = _scale_and_shift(settings)
    planes = np.empty((3, *rgb.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.multiply(rgb[..., channel], scale[channel], out=planes[channel])
        planes[channel] += shift[channel]
    return planes


def preprocess_patches(
    image: Image.Image,
    settings: ImageSettings,
    threads: int = 1,
    size: tuple[int, int] | None = None,
) -> tuple[Float32Array, tuple[int, int]]:
    """``patchify`` of ``preprocess``, in fewer passes over memory.

    Args:
        image: any mode; put into RGB (:mod:`vora_core.colours`).
        settings: the checkpoint's image settings.
        threads: how many may work on it.
        size: (width, height) of the image before a scaled decoder made it smaller.

    Returns:
        float32 (h * w, 3 * P * P), as ``patchify`` gives it, and the grid (h, w).

    Raises:
        ImageError: the image is too small or too elongated.
    """
    rgb = resized_rgb(image, settings, threads, size)
    side = settings.patch_size
    h, w = rgb.shape[0] // side, rgb.shape[1] // side
    scale, shift = (np.repeat(row, side * side) for row in _scale_and_shift(settings))
    # Cut into patches as bytes, a quarter of what there would be to move afterwards.
    pixels: Float32Array = byte_patches(rgb, side) * scale
    pixels += shift
    return pixels, (h, w)


def resized_rgb(
    image: Image.Image | UInt8Array,
    settings: ImageSettings,
    threads: int = 1,
    size: tuple[int, int] | None = None,
    orientation: int = 1,
) -> UInt8Array:
    """The image at the size at which it reaches the model, not normalised yet.

    Args:
        image: any mode, put into RGB (:mod:`vora_core.colours`); or pixels, uint8 (H, W, 3 or 4),
            a fourth channel being unused.
        settings: the checkpoint's image settings.
        threads: how many may work on it.
        size: (width, height) of the image before a scaled decoder made it smaller, as it is to be
            seen.
        orientation: EXIF's, 1 to 8: how the pixels are to be turned.

    Returns:
        uint8 (H, W, 3); H and W are multiples of the patch size.

    Raises:
        ImageError: the image is too small or too elongated.
    """
    if isinstance(image, Image.Image):
        # Alpha is put on white where it lies, which is not ours to do to a caller's image.
        image = to_rgb(image.copy() if image.mode == "RGBA" else image)
        lying = image.size
    else:
        lying = (image.shape[1], image.shape[0])
    seen = (lying[1], lying[0]) if orientation >= 5 else lying
    width, height = settings.resized(*(size or seen))
    native, edge = settings.resolution == "native", settings.resize_edge
    target = (width, height) if native else (edge, edge)
    if compiled(lying[0] * lying[1], settings.resample):
        pixels = pixels_of(image) if isinstance(image, Image.Image) else image
        side = None if native else max(lying)
        result = resize_compiled(pixels, target, threads, side, orientation)
    else:
        upright = Upright(image, orientation)
        if native:
            result = resize(upright, target, settings.resample, threads)
        else:
            result = resize_padded(upright, edge, settings.resample, threads)
    if native:
        return result
    start = (edge - settings.image_size) // 2
    return result[start : start + height, start : start + width]


def byte_patches(rgb: UInt8Array, patch_size: int) -> UInt8Array:
    """Cut resized pixels into flattened patches, as bytes.

    Args:
        rgb: uint8 (H, W, 3), H and W multiples of ``patch_size``.
        patch_size: P.

    Returns:
        uint8 (h * w, 3 * P * P), the grid row-major, each patch flattened as (3, P, P).
    """
    h, w = rgb.shape[0] // patch_size, rgb.shape[1] // patch_size
    patches = rgb.reshape(h, patch_size, w, patch_size, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(patches).reshape(h * w, -1)


def patchify(pixels: Float32Array, patch_size: int) -> Float32Array:
    """Cut pixels into flattened patches, so that patch embedding is one matrix product.

    Args:
        pixels: float32 (3, H, W), H and W multiples of ``patch_size``.
        patch_size: P.

    Returns:
        float32 (h * w, 3 * P * P), the grid row-major, each patch flattened as (3, P, P).
    """
    channels, height, width = pixels.shape
    h, w = height // patch_size, width // patch_size
    patches = pixels.reshape(channels, h, patch_size, w, patch_size).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(patches).reshape(h * w, channels * patch_size * patch_size)


def _scale_and_shift(settings: ImageSettings) -> tuple[Float32Array, Float32Array]:
    """Bytes to normalised values, per channel: one multiplication, one addition."""
    mean = np.asarray(settings.image_mean, dtype=np.float64)
    std = np.asarray(settings.image_std, dtype=np.float64)
    return (settings.rescale_factor / std).astype(np.float32), (-mean / std).astype(np.float32)
