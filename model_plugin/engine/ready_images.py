"""Images whose pixels come ready: the gateway has decoded, turned and resized them already.

vLLM loads what requests name through a media connector. This one recognises the container of
``vora_core.ready_pixels``; everything else goes vLLM's own way.
"""

from io import BytesIO
from typing import Any

import numpy as np
import pybase64
from PIL import Image
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaWithBytes

from vora_core.bicubic_weights import UInt8Array
from vora_core.geometry import ImageSettings
from vora_core.ready_pixels import MEDIA_TYPE, unpack

CONNECTOR = "vora"
_HEAD = f"data:{MEDIA_TYPE};base64,"
#: Where an image carries the file that it came in.
_FILE = "vora_file"


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class ReadyImageConnector(MediaConnector):
    """vLLM's connector, but for pixels that come ready."""

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """As vLLM's."""
        if not image_url.startswith(_HEAD):
            return super().fetch_image(image_url, image_mode=image_mode)
        return _load(image_url)

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Any:
        """As vLLM's."""
        if not image_url.startswith(_HEAD):
            return await super().fetch_image_async(image_url, image_mode=image_mode)
        # A tenth of a millisecond: another thread would take longer to wake.
        return _load(image_url)


def _load(url: str) -> MediaWithBytes[Image.Image]:
    """An image that keeps the file that it came in.

    Raises:
        ValueError: it cannot be read.
    """
    content = pybase64.b64decode(memoryview(url.encode())[len(_HEAD) :], validate=True)
    try:
        image = Image.open(BytesIO(content), formats=["PPM"])
    except (OSError, ValueError) as error:
        raise ValueError("Failed to load image: it is not a portable pixmap.") from error
    image.info[_FILE] = content
    return MediaWithBytes(image, content)


def ready_pixels(image: object, settings: ImageSettings) -> UInt8Array | None:
    """The image's pixels where they came ready for these settings.

    Returns:
        uint8 (H, W, 3), or None for an image that is yet to be resized.
    """
    content = image.info.get(_FILE) if isinstance(image, Image.Image) else None
    found = unpack(content, settings) if content is not None else None
    if found is None:
        return None
    rgb, (width, height) = found
    return np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
