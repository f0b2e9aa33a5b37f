"""One image from its bytes to what its engine is sent; blocks, so that it is run in a thread."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from vora_core.decoding import decode, scaled_size, seen_size
from vora_core.errors import ConfigError, ImageError, ImageRequestError
from vora_core.geometry import ImageSettings
from vora_core.image_files import Header, guarded
from vora_core.ready_pixels import MEDIA_TYPE, pack
from vora_serve.gateway.images.clean import CleanImage, clean

#: Of each pixel, where an image is turned before it is written: before and after.
_ANEW_BYTES = 8


@dataclass(frozen=True)
class Target:
    """What an image is to become.

    Attributes:
        settings: the model's image settings, bounds of the request applied; None for engines that
            do not say: they get an ordinary file.
        max_pixels: shrink an ordinary file to at most so many.
        passthrough: leave a plain file in the encoding that it came in.
        fast_decode: decode large JPEGs at a fraction of their size.
    """

    settings: ImageSettings | None = None
    max_pixels: int | None = None
    passthrough: bool = True
    fast_decode: bool = False

    def most_bytes(self, header: Header, size: int) -> int:
        """The bytes that are sent of an image, as far as they are known before it is decoded.

        Exactly or a little more where pixels are sent, an estimate where a file is.

        Args:
            header: its format and size.
            size: of the file, in bytes.
        """
        if self.settings is not None:
            return 3 * _final_pixels(self.settings, header) + 256
        if header.format == "JPEG":  # stays one, at the same quality
            return size + 4096
        # Written anew it is about as large as it was, or as its pixels are where those are few.
        return max(size, min(3 * header.pixels, 4 * size)) + 4096

    def decode_bytes(self, header: Header) -> int:
        """The most memory that decoding it takes, and writing it anew where that may be needed."""
        held = header.bytes_per_pixel
        anew = self.settings is None and not (self.passthrough and not header.may_turn)
        return int(header.pixels * (max(held, _ANEW_BYTES) if anew else held))


def bounded(
    settings: ImageSettings, min_pixels: int | None = None, max_pixels: int | None = None
) -> ImageSettings:
    """A model's image settings with a request's own bounds, as far as the model allows them.

    A model of fixed resolution makes the same number of tokens of every image: bounds change
    nothing there.

    Raises:
        ImageRequestError: the bounds exclude each other.
    """
    if settings.resolution == "fixed" or (min_pixels is None and max_pixels is None):
        return settings
    most = min(max(max_pixels or settings.max_pixels, settings.unit**2), settings.max_pixels)
    least = min(min_pixels if min_pixels is not None else settings.min_pixels, settings.max_pixels)
    if min_pixels is None:
        least = min(least, most)
    try:
        return replace(settings, min_pixels=least, max_pixels=most)
    except ConfigError as error:
        raise ImageRequestError(str(error)) from None


def prepare(content: bytes, header: Header, target: Target) -> CleanImage:
    """Decode, turn and resize an image, or clean its file.

    Raises:
        ImageRequestError: it does not decode without fault, or fits no size.
    """
    if target.settings is None:
        decoded = decode(content, header)
        size = _shrunk(decoded.size, target.max_pixels)
        return guarded(
            lambda: clean(decoded, header.format, passthrough=target.passthrough, size=size)
        )
    resized_rgb = _resizing()
    settings = target.settings
    fast = target.fast_decode and header.format == "JPEG"
    least = scaled_size(settings, header) if fast else None
    decoded = decode(content, header, least=least)
    seen = seen_size(header, decoded.orientation) if fast else decoded.size
    try:
        rgb = resized_rgb(decoded.pixels, settings, size=seen, orientation=decoded.orientation)
    except ImageError as error:
        raise ImageRequestError(str(error)) from None
    height, width = rgb.shape[:2]
    tokens = width * height // settings.unit**2
    packed = pack(rgb.tobytes(), (width, height), settings)
    return CleanImage(packed, MEDIA_TYPE, width, height, header.format, tokens)


@lru_cache(maxsize=1)
def _resizing() -> Callable[..., Any]:
    """``resized_rgb``; imported with the first image, since numpy takes 16 MB and 0.1 s."""
    from vora_core.pixels import resized_rgb

    gc.freeze()  # what these imports made lives as long as the process
    return resized_rgb


def _final_pixels(settings: ImageSettings, header: Header) -> int:
    """Pixels of the final size; a turn may round otherwise, but not past the model's bounds."""
    if settings.resolution == "fixed":
        return settings.image_size**2
    sizes = []
    for sides in ((header.width, header.height), (header.height, header.width)):
        try:
            width, height = settings.resized(*sides)
        except ImageError as error:
            raise ImageRequestError(str(error)) from None
        sizes.append(width * height)
    return max(sizes)


def _shrunk(size: tuple[int, int], most: int | None) -> tuple[int, int] | None:
    """The size with at most ``most`` pixels, of the same shape; None where it has no more."""
    width, height = size
    if most is None or width * height <= most:
        return None
    factor = math.sqrt(most / (width * height))
    return max(1, int(width * factor)), max(1, int(height * factor))
