"""Images of rows: which field holds them, and what their bytes are."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from model_plugin import ImageError
from model_plugin.decoding import decode
from vora_serve.training.labels import SampleError
from vora_serve.training.rows import TAR_IMAGES

#: Fields that may hold a row's images; the first that is filled is used.
IMAGE_FIELDS = (
    TAR_IMAGES, "frames", "images", "image", "image_path", "image_paths", "image_file",
    "image_files", "image_url", "image_urls", "img", "imgs", "img_path", "img_paths", "img_url",
    "pictures", "picture", "media", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
_OTHER_MEDIA = ("video", "videos", "video_path", "audio", "audios", "audio_path")
_MOVING = re.compile(r"\.(mp4|webm|mkv|avi|mov|mp3|wav|flac|m4a|ogg)$", re.IGNORECASE)
_STILL = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|heic)$", re.IGNORECASE)
_LIKE_IMAGE = re.compile(r"image|img|picture|photo|frame|screenshot|figure|media", re.IGNORECASE)
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
#: No path is as long as an image in base64.
_LONGEST_PATH = 4096


def raw_images(row: Mapping[str, Any]) -> list[Any]:
    """What a row holds of images, not opened yet.

    Raises:
        SampleError: a field is there but empty, holds something else than images, or seems to hold
            images but is not one that is read.
    """
    for field in _OTHER_MEDIA:
        if _is_filled(row.get(field)):
            raise SampleError(
                f"The field {field} holds video or audio, which is not trained on.", "other media"
            )
    for field in IMAGE_FIELDS:
        value = row.get(field)
        if value is None:
            continue
        items = list(value) if isinstance(value, Sequence) and not _is_one(value) else [value]
        if any(item is None or item in ("", b"") for item in items):
            raise SampleError(f"The field {field} is there but holds no image.", "image missing")
        if any(isinstance(item, str) and _MOVING.search(item) for item in items):
            raise SampleError(f"The field {field} holds a video or audio file.", "other media")
        if items:
            return items
    for field, value in row.items():
        if field not in IMAGE_FIELDS and _seems_image(field, value):
            raise SampleError(
                f"The field {field} seems to hold images, but is not one that is read; rename it "
                "to images.",
                "image field",
            )
    return []


def open_image(item: Any, image_dir: Path | None) -> Image.Image:
    """An image as the gateway decodes it.

    Args:
        item: bytes, a path, a ``data:`` URL, base64, or a record of one of them (``bytes``,
            ``path``, ``url``); a Pillow image is taken as it is.
        image_dir: folder that relative paths start from.

    Returns:
        RGB, as it is to be seen.

    Raises:
        SampleError: it is missing, or does not decode without fault.
    """
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, Mapping):
        keys = ("bytes", "path", "url", "image", "data", "file_name")
        item = next((item[key] for key in keys if item.get(key)), None)
    if isinstance(item, bytes | bytearray):
        content, name = bytes(item), "The image"
    elif isinstance(item, str) and item:
        content, name = _content(item, image_dir)
    else:
        raise SampleError("The image field holds no image.", "image missing")
    try:
        return decode(content)[0]
    except ImageError as error:
        raise SampleError(f"{name} cannot be read: {error}", "image unreadable") from error


def _content(item: str, image_dir: Path | None) -> tuple[bytes, str]:
    """The bytes that a string names, and what to call them."""
    head = _DATA_URL.match(item)
    if head or len(item) > _LONGEST_PATH:
        try:
            content = base64.b64decode(item[head.end() if head else 0 :], validate=True)
        except (binascii.Error, ValueError):
            raise SampleError("The image is not valid base64.", "image unreadable") from None
        return content, "The image"
    if item.startswith(("http://", "https://", "s3://", "gs://")):
        raise SampleError(
            f"The image {item} is an address, and training fetches nothing; give files.",
            "image missing",
        )
    file, name = (image_dir or Path()) / item.removeprefix("file://"), f"The image {item}"
    try:
        return file.read_bytes(), name
    except FileNotFoundError:
        raise SampleError(f"{name} is not there.", "image missing") from None
    except OSError as error:
        raise SampleError(f"{name} cannot be read: {error.strerror}.", "image unreadable") from None


def _is_filled(value: Any) -> bool:
    if isinstance(value, Sequence) and not _is_one(value):
        return any(map(_is_filled, value))
    return value is not None and value not in ("", b"")


def _seems_image(field: str, value: Any) -> bool:
    """Whether a field that is not read seems to hold what should have been."""
    if isinstance(value, Sequence) and not _is_one(value):
        return any(_seems_image(field, item) for item in value[:4])
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes)
    if isinstance(value, bytes | bytearray):
        return len(value) > 0
    if not isinstance(value, str) or not _LIKE_IMAGE.search(field):
        return False
    return bool(_STILL.search(value) or _DATA_URL.match(value))


def _is_one(value: Any) -> bool:
    return isinstance(value, str | bytes | bytearray)
