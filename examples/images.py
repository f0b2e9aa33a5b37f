"""What the Python examples share: where the server is, and an image as a URL."""

import base64
import mimetypes
import os
from pathlib import Path

BASE_URL = os.environ.get("VORA_BASE_URL", "http://127.0.0.1:8000") + "/v1"
API_KEY = os.environ.get("VORA_API_KEY", "unused")
MODEL = os.environ.get("VORA_MODEL", "vora-demo")


def image_url(image: str) -> str:
    """An address as it is, a file as a ``data:`` URL."""
    if image.startswith(("http://", "https://")):
        return image
    kind = mimetypes.guess_type(image)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(image).read_bytes()).decode()}"


def show(image: str, question: str) -> dict:
    """A user's message with one image."""
    return {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": image_url(image)}},
            {"type": "text", "text": question},
        ],
    }
