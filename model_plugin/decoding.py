"""Image files to pixels, as the gateway decodes them."""

from PIL import Image

from model_plugin.errors import ImageError
from model_plugin.images import MAX_ASPECT_RATIO, MIN_SIDE, ImageSettings
from vora_core.decoding import decode as decode_file
from vora_core.decoding import scaled_size, seen_size
from vora_core.errors import APIError
from vora_core.image_files import DecodeLimits, read_header

#: What Pillow takes for a decompression bomb, and shapes that no model takes.
LIMITS = DecodeLimits(max_pixels=89_478_485, min_side=MIN_SIDE, max_aspect_ratio=MAX_ASPECT_RATIO)


def decode(
    data: bytes, settings: ImageSettings | None = None, scaled_jpeg: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode an image file: JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF.

    Args:
        data: the file's bytes.
        settings: the checkpoint's image settings; needed for ``scaled_jpeg``.
        scaled_jpeg: decode large JPEG files at a half, a quarter or an eighth of their size, which
            the decoder does while it decodes. Faster, smaller, and not quite the released pixels.

    Returns:
        The image in RGB as it is to be seen (EXIF's orientation applied, transparency on white),
        and the size (width, height) that its file states, which decides its grid.

    Raises:
        ImageError: the bytes do not decode without fault, or make no image that can be used.
    """
    if not data:
        raise ImageError("The image file is empty.")
    try:
        header = read_header(data, LIMITS)
        fast = scaled_jpeg and settings is not None and header.format == "JPEG"
        least = scaled_size(settings, header) if fast and settings is not None else None
        decoded = decode_file(data, header, least=least)
    except APIError as error:
        raise ImageError(error.message) from error
    image = decoded.upright()
    return image, seen_size(header, decoded.orientation) if fast else image.size
