"""Encoded images to decoded ones. Needs Pillow only."""

from io import BytesIO

from PIL import Image, UnidentifiedImageError

from model_plugin.errors import ImageError
from model_plugin.images import ImageSettings

#: A scaled decoder leaves at least so many times the pixels of the final size along each side, so
#: that the bicubic filter still has something to average.
OVERSAMPLING = 2


def decode(
    data: bytes, settings: ImageSettings | None = None, scaled_jpeg: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode an image in any format that Pillow reads.

    Args:
        data: the file's bytes.
        settings: the checkpoint's image settings; needed for ``scaled_jpeg``.
        scaled_jpeg: decode large JPEG files at a half, a quarter or an eighth of their size, which
            the decoder does while it decodes. Faster, smaller, and not quite the released pixels.

    Returns:
        The image, and the size (width, height) that its file states, which decides its grid.

    Raises:
        ImageError: the bytes are no image, or one too large to decode safely.
    """
    try:
        image = Image.open(BytesIO(data))
        size = image.size
        if scaled_jpeg and settings is not None and image.format == "JPEG":
            image.draft("RGB", _least_size(size, settings))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        said = "empty" if not data else "no image in a format that can be read"
        raise ImageError(f"The image file is {said}.") from error
    except Image.DecompressionBombError as error:
        raise ImageError("The image has too many pixels to be decoded.") from error
    return image, size


def _least_size(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int]:
    """The least size that a scaled decoder may give."""
    if settings.resolution == "native":
        width, height = settings.resized(*size)
    else:
        width, height = (side * settings.resize_edge // max(size) for side in size)
    return OVERSAMPLING * width, OVERSAMPLING * height
