"""What an image file says of itself before a pixel of it is decoded: its format and its size."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeVar

from PIL import ExifTags, Image

from vora_core import image_cost as cost
from vora_core.errors import ImageRequestError, ImageTooLargeError

# The checks below are stricter and come first; Pillow's own would only warn.
Image.MAX_IMAGE_PIXELS = None

T = TypeVar("T")

#: The formats, by Pillow's names; HEIF only where ``pillow_heif`` is installed.
TAKEN = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIF")
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_REFUSAL = "An image is of none of the formats JPEG, PNG, WebP, AVIF, GIF, BMP and TIFF."


@dataclass(frozen=True)
class DecodeLimits:
    """What an image's header may say, in pixels."""

    max_pixels: int
    min_side: int
    max_aspect_ratio: float


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    Attributes:
        format: Pillow's name of it.
        width, height: in pixels as it is stored, before any turn.
        bytes_per_pixel: the most memory that decoding it takes.
        may_turn: whether there may be EXIF in it that says so.
    """

    format: str
    width: int
    height: int
    bytes_per_pixel: float = 4.0
    may_turn: bool = False

    @property
    def pixels(self) -> int:
        """How many there are to decode."""
        return self.width * self.height


def unreadable() -> ImageRequestError:
    """The error message for a file that does not decode without fault."""
    return ImageRequestError("An image is broken or incomplete.")


def guarded(step: Callable[[], T]) -> T:
    """Decoders raise nearly anything on hostile bytes: all of it is the caller's fault.

    Raises:
        ImageRequestError
    """
    try:
        return step()
    except (ImageRequestError, ImageTooLargeError):
        raise
    except (Exception, Warning):  # noqa: BLE001
        raise unreadable() from None


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
    if head[4:8] == b"ftyp":
        return _sniff_heif(content)
    raise ImageRequestError(_REFUSAL)


def _sniff_heif(content: bytes) -> str:
    """AVIF and HEIC share a container: the brands tell them apart."""
    box = content[8 : min(int.from_bytes(content[:4], "big"), 128)]
    brands = {box[:4], *(box[at : at + 4] for at in range(8, len(box), 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    if brands & _HEIC_BRANDS:
        if find_spec("pillow_heif") is None:
            raise ImageRequestError(
                "An image is of the format HEIC, which this server does not decode; send JPEG."
            )
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return "HEIF"
    raise ImageRequestError(_REFUSAL)


def read_header(content: bytes, limits: DecodeLimits) -> Header:
    """Format and size, from the header alone.

    Raises:
        ImageRequestError: unknown format, broken header, or a shape outside the limits.
        ImageTooLargeError: more pixels than allowed.
    """
    name = sniff_format(content)
    header = guarded(lambda: _read(content, name))
    _check_size((header.width, header.height), limits)
    return header


def _read(content: bytes, name: str) -> Header:
    if name == "WEBP":
        return Header(name, *_webp_size(content), cost.of_webp(), b"EXIF" in content)
    if name == "PNG":
        width, height = struct.unpack(">II", content[16:24])
        return Header(name, width, height, cost.of_png(content), b"eXIf" in content)
    with Image.open(io.BytesIO(content), formats=[name]) as image:
        width, height = image.size
        if name == "JPEG":
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            return Header(name, width, height, cost.of_jpeg(image, content), turned)
        if name in ("AVIF", "HEIF"):
            box = b"av1C" if name == "AVIF" else b"hvcC"
            return Header(name, width, height, cost.of_heif(content, box), True)
        return Header(name, width, height, cost.of_other(name, image))


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
    raise unreadable()


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if min(width, height) < limits.min_side:
        raise ImageRequestError(
            f"An image of {width}x{height} pixels is too small: "
            f"each side needs at least {limits.min_side}.",
            code="image_too_small",
        )
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"An image of {width}x{height} pixels exceeds the limit images.max_pixels, "
            f"{limits.max_pixels} pixels."
        )
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ImageRequestError(f"An image of {width}x{height} pixels is too elongated.")
