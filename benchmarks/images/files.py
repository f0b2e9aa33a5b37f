"""Image files to measure with: as smooth as photographs, and pages of text."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """An image about as smooth as a photograph: noise of several scales, summed."""
    rng = np.random.default_rng([seed, width, height])
    total = np.zeros((height, width, 3), dtype=np.float32)
    for cells, weight in ((4, 90), (24, 40), (120, 18), (480, 6)):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(layer, dtype=np.float32) / 255 - 0.5) * 2 * weight
    return Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str) -> bytes:
    """The image as a file."""
    file = BytesIO()
    options: dict[str, Any] = {"compress_level": 6} if kind == "PNG" else {"quality": 90}
    image.save(file, kind, **options)
    return file.getvalue()


def page(width: int, height: int, seed: int) -> Image.Image:
    """A page of text, black on white, with a figure."""
    rng = np.random.default_rng([seed, width, height])
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(width // 72)
    letters = np.array(list("etaoin shrdlu cmfwyp vbgkqj xz "))
    line = width // 50
    for top in range(height // 16, height * 2 // 3, line):
        draw.text((width // 12, top), "".join(rng.choice(letters, 84)), "black", font=font)
    figure = photograph(width // 2, height // 4, seed)
    image.paste(figure, (width // 4, height * 7 // 10))
    return image


def as_phone(image: Image.Image) -> bytes:
    """A JPEG as phones write it, to be turned by its EXIF."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Model] = "Phone"
    file = BytesIO()
    image.save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


def grainy(width: int, height: int, seed: int) -> Image.Image:
    """A photograph with a sensor's noise: 2 to 4 MB for 12 megapixels."""
    rng = np.random.default_rng([seed, width, height, 1])
    grain = Image.fromarray(rng.integers(0, 256, (height // 2, width // 2), dtype=np.uint8))
    grain = grain.resize((width, height), Image.Resampling.BILINEAR).convert("RGB")
    return Image.blend(photograph(width, height, seed), grain, 0.12)


def phone_photo(width: int, height: int, seed: int) -> bytes:
    """A portrait photo of a phone."""
    return as_phone(grainy(width, height, seed))


#: By name: media type, and what it is.
KINDS = {
    "thumbnail": ("image/jpeg", "Thumbnail: JPEG, 640x480"),
    "web": ("image/jpeg", "Web photo: JPEG, 1600x1200"),
    "screen": ("image/webp", "Screenshot: WebP, 1920x1080"),
    "page": ("image/png", "Page: PNG, 1275x1650"),
    "photo": ("image/jpeg", "Phone photo: JPEG, 4032x3024, turned by EXIF"),
}


def variants(kind: str, seed: int = 5) -> Iterator[bytes]:
    """Files of a kind without end, no two with the same pixels."""
    rng = np.random.default_rng(seed)
    base = {
        "thumbnail": lambda: grainy(640, 480, 1),
        "web": lambda: grainy(1600, 1200, 1),
        "screen": lambda: page(1920, 1080, 1),
        "page": lambda: page(1275, 1650, 1),
        "photo": lambda: grainy(4032, 3024, 1),
    }[kind]()
    while True:
        image, side = base.copy(), base.height // 8
        noise = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        patch = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
        image.paste(patch, (int(rng.integers(side)), int(rng.integers(side))))
        if kind == "photo":
            yield as_phone(image)
        else:
            yield encode(image, {"page": "PNG", "screen": "WEBP"}.get(kind, "JPEG"))


def another(jpeg: bytes, number: int) -> bytes:
    """The same image in a file that is not the same: with a comment of four bytes."""
    return jpeg[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + jpeg[2:]
