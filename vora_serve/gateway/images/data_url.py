"""``data:`` URLs."""

from __future__ import annotations

import base64
import binascii
import re

from vora_serve.errors import ImageRequestError

_HEAD = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+)?(;[a-z0-9-]+=[^;,]{0,64})*;base64$", re.I)
_SPACE = str.maketrans("", "", "\r\n\t ")


def decode_data_url(url: str, limit: int) -> tuple[bytes, bool]:
    """The bytes in a base64 ``data:`` URL; its media type is ignored, contents decide.

    Returns:
        The bytes, and whether the URL is written as strictly as any decoder wants it.

    Raises:
        ImageRequestError: not base64, empty, or more than ``limit`` bytes.
    """
    head, comma, payload = url.partition(",")
    if not comma or len(head) > 256 or not _HEAD.fullmatch(head):
        raise ImageRequestError("An image's data URL is not of the form data:image/...;base64,...")
    if len(payload) // 4 * 3 > limit + 3:
        raise ImageRequestError(f"An image exceeds {limit} bytes.", code="image_too_large")
    strict = True
    try:
        content = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        strict = False
        try:  # line breaks and missing padding are common, and harmless
            payload = payload.translate(_SPACE)
            content = base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ImageRequestError("An image's data URL holds invalid base64.") from None
    if not content:
        raise ImageRequestError("An image's data URL is empty.")
    if len(content) > limit:
        raise ImageRequestError(f"An image exceeds {limit} bytes.", code="image_too_large")
    return content, strict


def encode_data_url(content: bytes, media_type: str) -> str:
    """A base64 ``data:`` URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
