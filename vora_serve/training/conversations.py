"""Rows of public data sets to samples: whose turn it is, where images stand, what their bytes are.

Understood: the released records (``frames``, ``conversations`` with ``from``/``value``; parquet
rows hold the frames' bytes), LLaVA's (``image``, ``conversations``), and OpenAI-style ``messages``
with ``images``. An image without a place in the text stands before the first question, as in the
released code.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from model_plugin import ImageError
from model_plugin.decoding import decode
from model_plugin.images import IMAGE_TOKEN, RELEASED_IMAGE_TOKEN
from vora_serve.training.data import Sample
from vora_serve.training.labels import SampleError

#: Fields that may hold a row's images, the first that is there is used.
IMAGE_FIELDS = ("frames", "images", "image", "jpg", "jpeg", "png", "webp")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_PLACE = re.compile(f"({re.escape(RELEASED_IMAGE_TOKEN)}|{re.escape(IMAGE_TOKEN)})")


def read_row(row: Mapping[str, Any], image_dir: Path | None = None) -> Sample:
    """The conversation and images of a row.

    Args:
        row: a record of one of the forms above.
        image_dir: folder that relative paths of images start from.

    Raises:
        SampleError: there is no conversation, an answer is missing or empty, an image cannot be
            read, or text and images do not fit together.
    """
    turns = _turns(row)
    raw = _raw_images(row)
    places = sum(len(_PLACE.findall(text)) for role, text in turns if role == "user")
    if places and len(raw) != places:
        raise SampleError(f"The text places {places} images, but the row holds {len(raw)}.")
    images = [open_image(item, image_dir) for item in raw]
    messages: list[dict[str, Any]] = []
    unplaced = 0 if places else len(images)
    for role, text in turns:
        content: Any = text
        if role == "user" and images:
            parts = [{"type": "image"}] * unplaced + _parts(text)
            unplaced = 0
            content = parts if any(p["type"] == "image" for p in parts) else text
        messages.append({"role": role, "content": content})
    return Sample(messages, images)


def shorten(sample: Sample) -> Sample | None:
    """The sample without its last question and answer; None when only one pair is left."""
    messages = sample.messages
    last_question = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)
    kept = messages[:last_question]
    if not any(message["role"] == "assistant" for message in kept):
        return None
    places = sum(
        part["type"] == "image"
        for message in kept
        if isinstance(message["content"], list)
        for part in message["content"]
    )
    return Sample(kept, sample.images[:places])


def open_image(item: Any, image_dir: Path | None) -> Image.Image:
    """An image from bytes, a path, or ``{"bytes": ..., "path": ...}``, as the gateway decodes it.

    Returns:
        RGB, as it is to be seen; a Pillow image as it is.

    Raises:
        SampleError: it is missing, or does not decode without fault.
    """
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, Mapping):
        item = item.get("bytes") or item.get("path")
    if isinstance(item, bytes | bytearray):
        content, name = bytes(item), "The image"
    elif isinstance(item, str) and item:
        file, name = (image_dir or Path()) / item, f"The image {item}"
        if not file.is_file():
            raise SampleError(f"{name} is not there.")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SampleError(f"{name} cannot be read: {error.strerror}.") from error
    else:
        raise SampleError("The image field holds no image.")
    try:
        return decode(content)[0]
    except ImageError as error:
        raise SampleError(f"{name} cannot be read: {error}") from error


def _turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Roles and texts, in order."""
    records = row.get("conversations", row.get("messages"))
    if isinstance(records, Sequence) and records and isinstance(records[0], list):
        records = records[0]  # the released parquet files nest it once more
    if not isinstance(records, Sequence) or isinstance(records, str) or not records:
        raise SampleError("The row has no conversation.")
    turns = []
    for record in records:
        if not isinstance(record, Mapping):
            raise SampleError("A turn of the conversation is no record.")
        said = record.get("from", record.get("role"))
        role = _ROLES.get(str(said))
        if role is None:
            raise SampleError(f"A turn is {said!r}'s; it must be human's, gpt's or system's.")
        text = _text(record.get("value", record.get("content")))
        if role == "assistant" and not text.strip():
            raise SampleError("An answer is empty.")
        turns.append((role, text))
    spoken = [role for role, _ in turns if role != "system"]
    expected = ["user", "assistant"] * ((len(spoken) + 1) // 2)
    if spoken != expected or not spoken:
        raise SampleError("Questions and answers do not take turns, or the last has no answer.")
    return turns


def _text(content: Any) -> str:
    """A turn's text; the places of images in list content as placeholders."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        pieces = []
        for part in content:
            if not isinstance(part, Mapping):
                raise SampleError("A turn's content is neither text nor a list of parts.")
            is_image = part.get("type") in ("image", "image_url")
            pieces.append(RELEASED_IMAGE_TOKEN if is_image else str(part.get("text") or ""))
        return "".join(pieces)
    raise SampleError("A turn has no text.")


def _raw_images(row: Mapping[str, Any]) -> list[Any]:
    for field in IMAGE_FIELDS:
        value = row.get(field)
        if value is None:
            continue
        items = list(value) if isinstance(value, Sequence) and not _is_one(value) else [value]
        if any(item is None or item in ("", b"") for item in items):
            raise SampleError(f"The field {field} is there but holds no image.")
        return items
    return []


def _is_one(value: Any) -> bool:
    return isinstance(value, str | bytes | bytearray)


def _parts(text: str) -> list[dict[str, Any]]:
    """Text with placeholders as a list of parts."""
    pieces = _PLACE.split(text)
    return [
        {"type": "image"} if index % 2 else {"type": "text", "text": piece}
        for index, piece in enumerate(pieces)
        if index % 2 or piece
    ]
