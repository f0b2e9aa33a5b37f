"""Whole image files of every kind that the gateway takes, and what it makes of a file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

from vora_core.image_files import DecodeLimits, read_header
from vora_serve.gateway.images.clean import CleanImage
from vora_serve.gateway.images.prepare import Target, prepare

pillow_heif.register_heif_opener()

LIMITS = DecodeLimits(max_pixels=3_000_000, min_side=2, max_aspect_ratio=100)


def encode(image: Image.Image, kind: str, **save: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)  # type: ignore[arg-type]
    return buffer.getvalue()


def prepared(content: bytes, **target: Any) -> CleanImage:
    """The image as an engine gets it."""
    return prepare(content, read_header(content, LIMITS), Target(**target))


def decoded(content: bytes, **target: Any) -> np.ndarray:
    """The pixels that an engine of which nothing is known would see."""
    result = prepared(content, **target)
    image = Image.open(io.BytesIO(result.content))
    assert image.mode in ("RGB", "L", "P", "1")
    assert image.size == (result.width, result.height)
    return np.asarray(image.convert("RGB"))


_NOISE = np.random.default_rng(3).normal(128, 60, (90, 120)).clip(0, 255).astype(np.uint8)
#: Photograph-like, so that damage has data to hit; the same each time.
SCENE = Image.blend(
    Image.radial_gradient("L").resize((120, 90)).convert("RGB"),
    Image.fromarray(_NOISE).convert("RGB"),
    0.4,
)


def ycck(image: Image.Image) -> bytes:
    """A CMYK JPEG as Photoshop writes it: Adobe's marker says that the colours are YCCK."""
    content = encode(image.convert("CMYK"), "JPEG")
    at = content.index(b"Adobe") + 11
    return content[:at] + b"\x02" + content[at + 1 :]


def animation(image: Image.Image, kind: str, **save: object) -> bytes:
    return encode(image, kind, save_all=True, append_images=[image.rotate(180)], **save)


def tiff(compression: str, mode: str = "RGB") -> bytes:
    return encode(SCENE.convert(mode), "TIFF", compression=compression)


WHOLE: dict[str, bytes] = {
    "JPEG": encode(SCENE, "JPEG", quality=90),
    "progressive JPEG": encode(SCENE, "JPEG", progressive=True),
    "JPEG with restarts": encode(SCENE, "JPEG", restart_marker_rows=1),
    "CMYK JPEG": encode(SCENE.convert("CMYK"), "JPEG"),
    "YCCK JPEG": ycck(SCENE),
    "grey JPEG": encode(SCENE.convert("L"), "JPEG"),
    "MPO": animation(SCENE, "MPO", quality=90),
    "PNG": encode(SCENE, "PNG"),
    "palette PNG": encode(SCENE.convert("P"), "PNG"),
    "PNG with alpha": encode(SCENE.convert("RGBA"), "PNG"),
    "16-bit PNG": encode(Image.fromarray(np.asarray(SCENE.convert("L")).astype("u2") * 257), "PNG"),
    "animated PNG": animation(SCENE, "PNG"),
    "GIF": encode(SCENE, "GIF"),
    "animated GIF": animation(SCENE, "GIF"),
    "WEBP": encode(SCENE, "WEBP"),
    "lossless WEBP": encode(SCENE, "WEBP", lossless=True),
    "animated WEBP": animation(SCENE, "WEBP"),
    "AVIF": encode(SCENE, "AVIF"),
    "animated AVIF": animation(SCENE, "AVIF"),
    "HEIC": encode(SCENE, "HEIF"),
    "BMP": encode(SCENE, "BMP"),
    "TIFF": encode(SCENE, "TIFF"),
    "16-bit TIFF": encode(Image.fromarray(np.asarray(SCENE.convert("L")).astype("u2") * 9), "TIFF"),
    "LZW TIFF": tiff("tiff_lzw"),
    "deflated TIFF": tiff("tiff_adobe_deflate"),
    "JPEG TIFF": tiff("jpeg"),
    "PackBits TIFF": tiff("packbits"),
    "LZMA TIFF": tiff("lzma"),
    "Zstandard TIFF": tiff("zstd"),
    "fax TIFF": tiff("group4", "1"),
}
