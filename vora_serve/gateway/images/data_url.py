"""``data:`` URLs."""

from __future__ import annotations

import binascii
import re
from urllib.parse import unquote

import pybase64

from vora_core.errors import ImageRequestError, ImageTooLargeError

_HEAD = re.compile(
    r"data:\s*([a-z0-9.+*-]+(/[a-z0-9.+*-]+)?)?\s*(;\s*[a-z0-9-]+=[^;,]{0,64})*;\s*base64\s*$", re.I
)
_SPACE = str.maketrans("", "", "\r\n\t ")
_URL_SAFE = str.maketrans("-_", "+/")
_ESCAPED = re.compile(r"%[0-9a-f]{2}", re.I)


def too_many_bytes(limit: int) -> ImageTooLargeError:
    """The error for a file that is too large."""
    return ImageTooLargeError(f"An image exceeds the limit images.max_bytes, {limit} bytes.")


def decode_data_url(url: str, limit: int) -> tuple[bytes, bool]:
    """The bytes in a base64 ``data:`` URL; its media type is ignored, contents decide.

    Returns:
        The bytes, and whether the URL is written as strictly as any decoder wants it.

    Raises:
        ImageRequestError: not base64, or empty.
        ImageTooLargeError: more than ``limit`` bytes.
    """
    head, comma, payload = url.partition(",")
    if not comma or len(head) > 256 or not _HEAD.fullmatch(head):
        raise ImageRequestError("An image's data URL is not of the form data:image/...;base64,...")
    if len(payload) // 4 * 3 > limit + 3:
        raise too_many_bytes(limit)
    strict = True
    try:
        content = pybase64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        strict = False
        try:  # common, and harmless: line breaks, escapes, the alphabet for URLs, no padding
            if _ESCAPED.search(payload):
                payload = unquote(payload, "ascii", "strict")
            payload = payload.translate(_SPACE)
            if "+" not in payload and "/" not in payload:
                payload = payload.translate(_URL_SAFE)
            payload = payload.rstrip("=")
            content = pybase64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ImageRequestError("An image's data URL holds invalid base64.") from None
    if not content:
        raise ImageRequestError("An image's data URL is empty.")
    if len(content) > limit:
        raise too_many_bytes(limit)
    return content, strict


def encode_data_url(content: bytes, media_type: str) -> str:
    """A base64 ``data:`` URL."""
    return f"data:{media_type};base64,{pybase64.b64encode_as_string(content)}"
