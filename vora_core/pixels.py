"""Images to pixels: resize, crop, normalise, cut into patches. Needs numpy and Pillow only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from vora_core.bicubic_weights import UInt8Array
from vora_core.geometry import ImageSettings
from vora_core.resampling import resize, resize_padded

Float32Array = npt.NDArray[np.float32]


def preprocess(image: Image.Image, settings: ImageSettings) -> Float32Array:
    """Pixels as the model takes them.

    Args:
        image: any mode; converted to RGB.
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
        image: any mode; converted to RGB.
        settings: the checkpoint's image settings.
        threads: how many may work on it.
        size: (width, height) of the picture before a scaled decoder made it smaller.

    Returns:
        float32 (h * w, 3 * P * P), as ``patchify`` gives it, and the grid (h, w).

    Raises:
        ImageError: the image is too small or too elongated.
    """
    rgb = resized_rgb(image, settings, threads, size)
    side = settings.patch_size
    h, w = rgb.shape[0] // side, rgb.shape[1] // side
    # Cut into patches as bytes, a quarter of what there is to move afterwards.
    patches = rgb.reshape(h, side, w, side, 3).transpose(0, 2, 4, 1, 3)
    scale, shift = (np.repeat(row, side * side) for row in _scale_and_shift(settings))
    pixels: Float32Array = np.ascontiguousarray(patches).reshape(h * w, -1) * scale
    pixels += shift
    return pixels, (h, w)


def resized_rgb(
    image: Image.Image,
    settings: ImageSettings,
    threads: int = 1,
    size: tuple[int, int] | None = None,
) -> UInt8Array:
    """The image at the size at which it reaches the model, not normalised yet.

    Args:
        image: any mode; converted to RGB.
        settings: the checkpoint's image settings.
        threads: how many may work on it.
        size: (width, height) of the picture before a scaled decoder made it smaller.

    Returns:
        uint8 (H, W, 3); H and W are multiples of the patch size.

    Raises:
        ImageError: the image is too small or too elongated.
    """
    width, height = settings.resized(*(size or image.size))
    if image.mode != "RGB":
        image = image.convert("RGB")
    if settings.resolution == "native":
        return resize(image, (width, height), settings.resample, threads)
    square = resize_padded(image, settings.resize_edge, settings.resample, threads)
    start = (settings.resize_edge - settings.image_size) // 2
    return square[start : start + height, start : start + width]


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
