"""What the Python examples share: where the server is, and an image as a URL."""

import base64
import mimetypes
import os
import sys
from pathlib import Path
from types import TracebackType

BASE_URL = os.environ.get("VORA_BASE_URL", "http://127.0.0.1:8000") + "/v1"
API_KEY = os.environ.get("VORA_API_KEY", "unused")
MODEL = os.environ.get("VORA_MODEL", "vora-demo")


def image_url(image: str) -> str:
    """An address as it is, a file as a ``data:`` URL."""
    if image.startswith(("http://", "https://")):
        return image
    kind = mimetypes.guess_type(image)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(image_bytes(image)).decode()}"


def image_bytes(image: str) -> bytes:
    """A file's content; the end of the program if it cannot be read."""
    try:
        return Path(image).read_bytes()
    except OSError as error:
        sys.exit(
            f"{image} cannot be read: {error.strerror}. "
            "Draw an image with: .venv/bin/vora-serve demo image scene.png"
        )


def show(image: str, question: str) -> dict:
    """A user's message with one image."""
    return {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": image_url(image)}},
            {"type": "text", "text": question},
        ],
    }


def _say_what_is_wrong(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """One sentence where no server answers, or it refuses; a traceback for anything else."""
    names = {base.__name__ for base in kind.__mro__}
    if "APIConnectionError" in names:
        print(f"No server answers at {BASE_URL}. Start one with: make demo", file=sys.stderr)
    elif "APIStatusError" in names:
        print(error, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say_what_is_wrong  # for all examples that import this module
