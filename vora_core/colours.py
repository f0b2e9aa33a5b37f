"""Any mode to RGB: alpha and palette on white, CMYK converted, wide samples scaled, not clipped.

Band by band, so that an image takes no more memory than before and after together; one with alpha,
no more than before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image

from vora_core.errors import ImageRequestError

_WHITE = (255, 255, 255)
_BAND_PIXELS = 1 << 19
_ALPHA = frozenset(("RGBA", "LA", "PA", "RGBa", "La"))

Box = tuple[int, int, int, int]


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB. One of mode RGBA is changed in place.

    Raises:
        ImageRequestError: it has samples that no eight bits stand for.
    """
    transparent = "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        return image
    if image.mode == "RGBA":
        return _without_alpha(image)
    step: Callable[[Image.Image], Image.Image]
    if image.mode.startswith("I") or image.mode == "F":
        factor = _factor(image)

        def step(band: Image.Image) -> Image.Image:
            wide = band if band.mode == "F" else band.convert("I")
            return wide.point(lambda value: value * factor + 0.0).convert("L")

    elif image.mode in _ALPHA or transparent:

        def step(band: Image.Image) -> Image.Image:
            return _on_white(band.convert("RGBA"))

    else:

        def step(band: Image.Image) -> Image.Image:
            return band.convert("RGB")

    canvas = Image.new("RGB", image.size)
    for box in _bands(image):
        canvas.paste(step(image.crop(box)), box)
    return canvas


def _bands(image: Image.Image) -> Iterator[Box]:
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield (0, top, image.width, min(top + rows, image.height))


def _on_white(band: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", band.size, _WHITE)
    canvas.paste(band, mask=band)
    return canvas


def _without_alpha(image: Image.Image) -> Image.Image:
    for box in _bands(image):
        image.paste(_on_white(image.crop(box)), box)
    try:  # the same memory, of which each fourth byte is unused then
        return Image.fromarrow(image, "RGB", image.size)
    except ValueError:  # it lies in several blocks
        return image.convert("RGB")


def _factor(image: Image.Image) -> float:
    """From samples of more than eight bits to eight."""
    lows, highs = [], []
    for box in _bands(image):
        band = image.crop(box)
        low, high = (band if band.mode == "F" else band.convert("I")).getextrema()
        assert isinstance(low, (int, float))
        assert isinstance(high, (int, float))
        lows.append(low)
        highs.append(high)
    low, high = min(lows), max(highs)
    if image.mode == "F":
        factor = 255.0 if high <= 1.0 else 1.0 if high <= 255.0 else 255.0 / 65535.0
    else:
        factor = 255.0 / 65535.0 if high <= 65535 else 255.0 / 4294967295.0
    sound = all(value >= 0 and value * factor <= 255.5 for value in (*lows, *highs))  # not NaN
    if not sound:
        raise ImageRequestError("An image is broken or incomplete.")
    return factor
