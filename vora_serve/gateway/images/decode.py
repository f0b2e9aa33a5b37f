"""From the bytes of an image to clean RGB bytes for the engine.

Formats are told by content. Sizes are read from the header and checked before any pixel is decoded.
Everything that could be read in two ways is settled here: orientation applied, alpha and palette on
white, CMYK and 16-bit samples converted (scaled, not clipped), the first frame of animations.
These functions block; the gateway runs them in threads (Pillow's decoders release the GIL).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import ExifTags, Image

from vora_serve.errors import ImageRequestError

# The checks below are stricter and come first; Pillow's own would only warn.
Image.MAX_IMAGE_PIXELS = None

T = TypeVar("T")

_WHITE = (255, 255, 255)
_MAX_JPEG_SCANS = 200
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png"}


@dataclass(frozen=True)
class DecodeLimits:
    """What an image's header may say, in pixels."""

    max_pixels: int
    min_side: int
    max_aspect_ratio: float


@dataclass(frozen=True)
class NormalisedImage:
    """An image as the engine gets it."""

    content: bytes
    media_type: str
    width: int
    height: int
    source_format: str


def sniff_format(content: bytes) -> str:
    """Pillow's name of the format, by the first bytes.

    Raises:
        ImageRequestError: none of the formats taken.
    """
    head = content[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return "TIFF"
    if head[:2] == b"BM":
        return "BMP"
    raise ImageRequestError(
        "An image is of none of the formats JPEG, PNG, WebP, GIF, BMP and TIFF."
    )


def _webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in a WebP header: Pillow's plugin allocates whole frames on opening."""
    kind, data = content[12:16], content[20:34]
    if kind == b"VP8X":
        return (
            int.from_bytes(data[4:7], "little") + 1,
            int.from_bytes(data[7:10], "little") + 1,
        )
    if kind == b"VP8L" and data[:1] == b"\x2f":
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise _unreadable()


def _unreadable() -> ImageRequestError:
    return ImageRequestError("An image is broken or incomplete.")


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if min(width, height) < limits.min_side:
        raise ImageRequestError(
            f"An image of {width}x{height} pixels is too small: "
            f"each side needs at least {limits.min_side}.",
            code="image_too_small",
        )
    if width * height > limits.max_pixels:
        raise ImageRequestError(
            f"An image of {width}x{height} pixels exceeds {limits.max_pixels} pixels.",
            code="image_too_large",
        )
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ImageRequestError(f"An image of {width}x{height} pixels is too elongated.")


def _guarded(step: Callable[[], T]) -> T:
    """Pillow's decoders raise nearly anything on hostile bytes: all of it is the caller's fault."""
    try:
        return step()
    except ImageRequestError:
        raise
    except (Exception, Warning):  # noqa: BLE001
        raise _unreadable() from None


def inspect(content: bytes, limits: DecodeLimits) -> tuple[str, int, int]:
    """Format, width and height, from the header alone.

    Raises:
        ImageRequestError: unknown format, broken header, or a size outside the limits.
    """
    name = sniff_format(content)
    if name == "WEBP":
        size = _guarded(lambda: _webp_size(content))
    else:
        with _guarded(lambda: Image.open(io.BytesIO(content), formats=[name])) as image:
            size = image.size
    _check_size(size, limits)
    return name, *size


def _is_whole(name: str, content: bytes) -> bool:
    """Whether the file ends where its format says; what trails it is not passed on."""
    if name == "JPEG":
        return content.endswith(b"\xff\xd9")
    return content.endswith(b"IEND\xaeB`\x82")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (Exception, Warning):  # noqa: BLE001 - malformed EXIF is as good as none
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_plain(name: str, image: Image.Image, content: bytes) -> bool:
    """Whether any decoder gives the same RGB pixels for the file as it is."""
    return (
        name in _MEDIA_TYPES
        and image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and getattr(image, "n_frames", 1) == 1
        and _orientation(image) == 1
        and _is_whole(name, content)
    )


def _scaled(image: Image.Image) -> Image.Image:
    """Samples of more than eight bits, scaled to eight."""
    wide = image if image.mode == "F" else image.convert("I")
    low, high = wide.getextrema()
    assert isinstance(low, (int, float))
    assert isinstance(high, (int, float))
    if image.mode == "F":
        factor = 255.0 if high <= 1.0 else 1.0 if high <= 255.0 else 255.0 / 65535.0
        bright = high * factor
    else:
        factor = 255.0 / 65535.0 if high <= 65535 else 255.0 / 4294967295.0
        bright = high * factor
    if low < 0 or not bright <= 255.5:  # also NaN
        raise _unreadable()
    return wide.point(lambda value: value * factor + 0.0).convert("L")


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB: alpha and palette on white, wide samples scaled."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = _scaled(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, _WHITE)
        canvas.paste(image, mask=image)  # by its own alpha, without a copy of it
        return canvas
    return image.convert("RGB")


def _fit(image: Image.Image, budget: int) -> Image.Image:
    """Shrink to at most ``budget`` pixels, keeping the aspect ratio."""
    width, height = image.size
    if width * height <= budget:
        return image
    factor = (budget / (width * height)) ** 0.5
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def normalise(
    content: bytes, limits: DecodeLimits, *, passthrough: bool = True, budget: int | None = None
) -> NormalisedImage:
    """Decode an image wholly and give it back as a clean JPEG or PNG.

    Args:
        content: The file.
        limits: Checked again before decoding.
        passthrough: Give a plain 8-bit JPEG or PNG back as it came, once it decoded without fault.
        budget: Shrink to at most so many pixels.

    Raises:
        ImageRequestError
    """
    name, width, height = inspect(content, limits)
    if name == "JPEG" and content.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise ImageRequestError("An image has more scans than a JPEG needs.")

    def work() -> NormalisedImage:
        with Image.open(io.BytesIO(content), formats=[name]) as image:
            fits = budget is None or width * height <= budget
            if passthrough and fits and _is_plain(name, image, content):
                if name == "JPEG":
                    image.draft(image.mode, (max(1, width // 8), max(1, height // 8)))
                image.load()
                return NormalisedImage(content, _MEDIA_TYPES[name], width, height, name)
            image.seek(0)
            image.load()
            # Read after loading: Pillow's TIFF plugin turns the pixels itself and drops the tag.
            turn = _TURNS.get(_orientation(image))
            picture = to_rgb(image)
        if turn is not None:
            picture = picture.transpose(turn)
        if budget is not None:
            picture = _fit(picture, budget)
        picture.info = {}
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        return NormalisedImage(buffer.getvalue(), "image/png", *picture.size, name)

    return _guarded(work)
