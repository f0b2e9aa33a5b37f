"""WebP files: the pixels that Pillow loads, without its copy of them."""

from __future__ import annotations

import gc
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vora_core.decoding import decode
from vora_core.errors import ImageRequestError
from vora_core.image_files import DecodeLimits, read_header
from vora_core.pixel_memory import image_of, webp_pixels
from vora_core.upright import Upright

LIMITS = DecodeLimits(52_000_000, 2, 200)


def noise_image(width: int, height: int) -> Image.Image:
    samples = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(samples)


def webp(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "WEBP", **options)
    return file.getvalue()


@pytest.mark.parametrize("size", [(61, 40), (700, 500)])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"method": 0, "quality": 5}])
def test_the_pixels_are_those_that_pillow_loads(
    size: tuple[int, int], options: dict[str, Any]
) -> None:
    content = webp(noise_image(*size), **options)
    expected = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    decoded = decode(content, read_header(content, LIMITS))
    gc.collect()  # the array alone keeps its memory
    assert decoded.size == size
    assert decoded.plain
    np.testing.assert_array_equal(decoded.pixels[..., :3], expected)
    band = Upright(decoded.pixels).rows(7, 31)
    np.testing.assert_array_equal(np.asarray(band), expected[7:31])
    np.testing.assert_array_equal(np.asarray(image_of(decoded.pixels)), expected)
    turned = decode(content, read_header(content, LIMITS))
    turned.orientation = 6
    np.testing.assert_array_equal(np.asarray(turned.upright()), np.rot90(expected, -1))


def test_alpha_goes_pillows_way() -> None:
    content = webp(Image.new("RGBA", (20, 20), (10, 20, 30, 0)), lossless=True)
    assert webp_pixels(Image.open(BytesIO(content))) is None
    decoded = decode(content, read_header(content, LIMITS))
    assert decoded.take_image().getpixel((3, 3)) == (255, 255, 255)


def test_a_pillow_that_gives_no_frames_away(monkeypatch: pytest.MonkeyPatch) -> None:
    content = webp(noise_image(61, 40))
    usual = decode(content, read_header(content, LIMITS)).take_image()
    monkeypatch.setattr("vora_core.pixel_memory.webp_pixels", lambda _: None)
    other = decode(content, read_header(content, LIMITS))
    assert isinstance(other.pixels, Image.Image)
    assert usual.tobytes() == other.pixels.tobytes()


def test_a_frame_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = webp(noise_image(61, 40))
    plugin = "PIL.WebPImagePlugin.WebPImageFile._get_next"
    monkeypatch.setattr(plugin, lambda _: (b"\0" * 4 * 61 * 39, 0, 0))
    with pytest.raises(ImageRequestError, match="broken"):
        decode(content, read_header(content, LIMITS))
