"""From the bytes of an image to its pixels, once, or a refusal.

What does not decode without fault is refused, in every format. What could be read in two ways is
settled here: alpha and palette on white, CMYK and samples of more than eight bits converted
(scaled, not clipped), the first frame of animations; the orientation is passed along, since turning
a small image costs less than turning a large one. The gateway serves, and training learns, what is
decoded here. These functions block; the gateway runs them in threads, and the decoders release the
GIL.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

from vora_core.colours import to_rgb
from vora_core.errors import ImageRequestError
from vora_core.geometry import ImageSettings
from vora_core.gif import require_end
from vora_core.image_files import Header, guarded
from vora_core.png import essential_chunks
from vora_core.png_pixels import fast_pixels
from vora_core.tiff import load_strictly

#: A scaled decoder leaves at least so many times the pixels of the final size along each side, so
#: that the bicubic filter still has something to average.
OVERSAMPLING = 2
_MAX_JPEG_SCANS = 200
#: Turned by Pillow's plugins, or by libheif, while they decode.
_TURNED_BY_DECODER = frozenset(("TIFF", "HEIF"))


@dataclass
class Decoded:
    """An image's pixels.

    Attributes:
        pixels: an RGB image, or what the fast decoders give: uint8 (H, W, 3), or (H, W, 4) with a
            fourth channel that is unused.
        orientation: EXIF's, 1 to 8: how they are yet to be turned.
        plain: whether the file itself shows any decoder the same RGB pixels.
        content: the file without what does not decide its pixels, where that is known.
        tables: JPEG's own: ``qtables`` and ``subsampling`` for writing at the same quality.
    """

    pixels: Any
    orientation: int
    plain: bool
    content: bytes
    tables: dict[str, Any] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as it is to be seen."""
        width, height = self.stored_size
        return (height, width) if self.orientation >= 5 else (width, height)

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height as the pixels lie."""
        if isinstance(self.pixels, Image.Image):
            return self.pixels.size
        return int(self.pixels.shape[1]), int(self.pixels.shape[0])

    def take_image(self) -> Image.Image:
        """The pixels as a Pillow image, not turned; they are gone from here afterwards."""
        from vora_core.pixel_memory import image_of  # imports numpy

        pixels, self.pixels = self.pixels, None
        return pixels if isinstance(pixels, Image.Image) else image_of(pixels)

    def upright(self) -> Image.Image:
        """The pixels as a Pillow image, as it is to be seen; they are gone from here afterwards."""
        from vora_core.upright import TURNS  # imports numpy

        image = self.take_image()
        return image.transpose(TURNS[self.orientation]) if self.orientation in TURNS else image


def decode(content: bytes, header: Header, *, least: tuple[int, int] | None = None) -> Decoded:
    """All pixels of an image.

    Args:
        content: The file.
        header: What :func:`read_header` found.
        least: A JPEG may be decoded at a fraction of its size, no smaller than this width and
            height as stored. Faster, and not quite the same pixels.

    Raises:
        ImageRequestError: it does not decode without fault.
    """
    _use_single_blocks()
    if header.format == "JPEG":
        return guarded(lambda: _decode_jpeg(content, least))
    if header.format == "PNG":
        content = essential_chunks(content)
        samples = fast_pixels(content, header.width, header.height)
        if samples is not None:
            return _from_samples(samples, content)
    if header.format == "GIF":
        guarded(lambda: require_end(content))
    return guarded(lambda: _decode_with_pillow(content, header.format))


def _use_single_blocks() -> None:
    """Have Pillow keep each image in one block from now on, whatever its size.

    Only then can an image lose its alpha, or be resized, without a copy of all its pixels.
    """
    Image.core.set_use_block_allocator(1)  # type: ignore[attr-defined]


def scaled_size(settings: ImageSettings, header: Header) -> tuple[int, int]:
    """The least size that a scaled decoder may give, as the pixels lie.

    Args:
        settings: what the image is resized by.
        header: of its file.

    Raises:
        ImageError: the image is too small or too elongated.
    """
    if settings.resolution == "fixed":
        longest = max(header.width, header.height)
        width, height = (
            side * settings.resize_edge // longest for side in (header.width, header.height)
        )
    else:
        sizes = (
            settings.resized(header.width, header.height),
            settings.resized(header.height, header.width)[::-1],
        )
        width, height = (max(sides) for sides in zip(*sizes, strict=True))
    return max(1, OVERSAMPLING * width), max(1, OVERSAMPLING * height)


def seen_size(header: Header, orientation: int) -> tuple[int, int]:
    """Width and height that a file states, as the image is to be seen."""
    turned = orientation >= 5
    return (header.height, header.width) if turned else (header.width, header.height)


def _decode_jpeg(content: bytes, least: tuple[int, int] | None) -> Decoded:
    """By libjpeg-turbo, which Pillow uses too; but here its warnings are errors."""
    import simplejpeg

    if content.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise ImageRequestError("An image has more scans than a JPEG needs.")
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        orientation = _orientation(image)
        tables = {"qtables": image.quantization} if hasattr(image, "quantization") else None
        mode = image.mode
        if mode not in ("RGB", "L"):
            simplejpeg.decode_jpeg(content, colorspace="CMYK", strict=True)  # looks for faults
            image.load()
            return Decoded(to_rgb(image), orientation, plain=False, content=content, tables=tables)
    scale = {} if least is None else {"min_width": least[0], "min_height": least[1]}
    pixels = simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True, **scale)
    return Decoded(pixels, orientation, orientation == 1, content, tables)


def _decode_with_pillow(content: bytes, name: str) -> Decoded:
    with Image.open(io.BytesIO(content), formats=[name]) as image:
        frames = getattr(image, "n_frames", 1)
        image.seek(0)
        pixels = None
        if name == "TIFF":
            load_strictly(image, content)
        else:
            pixels = _webp_pixels(image) if name == "WEBP" else None
            if pixels is None:
                image.load()
        # Read after loading: Pillow's TIFF plugin turns the pixels itself and drops the tag.
        orientation = 1 if name in _TURNED_BY_DECODER else _orientation(image)
        plain = (
            name in ("PNG", "WEBP")
            and image.mode in ("RGB", "L", "P", "1")
            and "transparency" not in image.info
            and frames == 1
            and orientation == 1
            and "exif" not in image.info
        )
        return Decoded(to_rgb(image) if pixels is None else pixels, orientation, plain, content)


def _webp_pixels(image: Image.Image) -> Any | None:
    from vora_core.pixel_memory import webp_pixels  # imports numpy

    return webp_pixels(image)


def _from_samples(samples: Any, content: bytes) -> Decoded:
    """What a PNG's samples show, of which there are 1, 3 or 4 a pixel."""
    channels = samples.shape[2]
    if channels == 3:
        return Decoded(samples, 1, plain=True, content=content)
    image = Image.fromarray(samples[:, :, 0] if channels == 1 else samples)
    return Decoded(to_rgb(image), 1, channels == 1, content)


def _orientation(image: Image.Image) -> int:
    """EXIF's, of an image that has been loaded, or of a JPEG, whose EXIF lies before its pixels."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (Exception, Warning):  # noqa: BLE001 - malformed EXIF is as good as none
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
