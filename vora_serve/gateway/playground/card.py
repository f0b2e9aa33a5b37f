"""What a model's card (``README.md`` beside its weights) says that it knows, with examples.

The front matter's ``widget`` entries are the Hugging Face Hub's own form of examples:
``{text: question, src: file in this folder}``.
"""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from vora_core.checkpoint import find_local
from vora_core.errors import VoRAError
from vora_core.image_files import sniff_format

_MAX_CARD_CHARS = 64 * 1024
_MAX_ABOUT_CHARS = 400
_MAX_EXAMPLES = 8
_MAX_IMAGE_BYTES = 256 * 1024
_TYPES = {"PNG": "png", "JPEG": "jpeg", "GIF": "gif", "WEBP": "webp"}
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.S)
#: Paragraphs that are no prose: headings, HTML, images and badges, lists, tables, code.
_NO_PROSE = re.compile(r"[#<!\[|`>~*+-]|\d+\.")

NOTHING: dict[str, Any] = {"about": None, "examples": []}


@lru_cache(maxsize=64)
def describe_card(location: str) -> dict[str, Any]:
    """``{"about": text or None, "examples": [{"question", "name", "image"}]}``.

    Args:
        location: a folder, or a hub id whose files are in the local cache. Without a card, or where
            it is out of reach, nothing is known.
    """
    folder = find_local(location)
    if folder is None:
        return NOTHING
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAX_CARD_CHARS).replace("\r\n", "\n")
    except OSError:
        return NOTHING
    front = _FRONT.match(text)
    return {
        "about": _about(text[front.end() :] if front else text),
        "examples": _examples(front[1], folder) if front else [],
    }


def _about(body: str) -> str | None:
    """The card's first paragraph of prose."""
    for paragraph in body.split("\n\n"):
        words = " ".join(paragraph.split())
        if words and not _NO_PROSE.match(words):
            plain = (
                re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words).replace("**", "").replace("`", "")
            )
            return plain[: _MAX_ABOUT_CHARS - 1] + "…" if len(plain) > _MAX_ABOUT_CHARS else plain
    return None


def _examples(front: str, folder: Path) -> list[dict[str, Any]]:
    try:
        tree = yaml.safe_load(front)
    except yaml.YAMLError:
        return []
    given = tree.get("widget") if isinstance(tree, dict) else None
    found = []
    for entry in given if isinstance(given, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("text"), str):
            source = entry.get("src")
            image = _image(folder, source) if isinstance(source, str) else None
            name = PurePosixPath(str(source)).name if image is not None else None
            found.append({"question": entry["text"][:200], "name": name, "image": image})
    return found[:_MAX_EXAMPLES]


def _image(folder: Path, source: str) -> str | None:
    """A file of the folder as a ``data:`` URL; what lies elsewhere, or is no image, is left out."""
    path = PurePosixPath(source)
    if path.is_absolute() or ".." in path.parts or "\\" in source or ":" in source:
        return None
    try:
        with (folder / path).open("rb") as file:
            content = file.read(_MAX_IMAGE_BYTES + 1)
        kind = _TYPES.get(sniff_format(content))
    except (OSError, VoRAError, ValueError):
        return None
    if kind is None or len(content) > _MAX_IMAGE_BYTES:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
