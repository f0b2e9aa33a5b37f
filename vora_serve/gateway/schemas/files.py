"""Parts of content that are files, and the images that take their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from vora_serve.gateway.images import DocumentRef, ImageRef
from vora_serve.gateway.schemas.base import Schema, ShortText

Tree = dict[str, Any]


class FileSource(Schema):
    """A file: its bytes as a ``data:`` URL or base64, or where they are."""

    filename: ShortText | None = None
    file_data: str | None = None
    file_id: ShortText | None = None

    def _sources(self) -> list[str | None]:
        return [self.file_data, self.file_id]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(bool(source) for source in self._sources()) != 1:  # an empty text is no source
            raise PydanticCustomError("one_source", "exactly one source of the file is needed")
        return self


class ChatFile(FileSource):
    """The file of a part; by its URL as well, which OpenAI takes in responses only."""

    file_url: str | None = None

    def _sources(self) -> list[str | None]:
        return [*super()._sources(), self.file_url]


class FilePart(Schema):
    """A file in a chat: a PDF, or an image."""

    type: Literal["file"]
    file: ChatFile


class InputFile(FileSource):
    """A file in a response's input: a PDF, or an image."""

    type: Literal["input_file"]
    file_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None

    def _sources(self) -> list[str | None]:
        return [*super()._sources(), self.file_url]


def document_in(part: Tree, where: str, position: int) -> DocumentRef | None:
    """The file that a part is, if it is one."""
    kind = part.get("type")
    if kind == "file":
        source, where = part["file"], f"{where}.file"
    elif kind == "input_file":
        source = part
    else:
        return None
    name = next(name for name in ("file_data", "file_url", "file_id") if source.get(name))
    return DocumentRef(
        part,
        f"{where}.{name}",
        data=source.get("file_data"),
        url=source.get("file_url"),
        file_id=source.get("file_id"),
        position=position,
        detail=source.get("detail") or "auto",
    )


def pages_of(document: DocumentRef, pages: Sequence[bytes]) -> list[ImageRef]:
    """Its pages as images of a request."""
    least, most = document.bounds
    return [
        ImageRef("", document.detail, document.param, least, most, content=page) for page in pages
    ]


def put_parts(payload: Tree, document: DocumentRef, count: int) -> list[tuple[Tree, str]]:
    """Replace a file's part by image parts.

    Returns:
        For each image, the object and the name in it that its URL is to have.
    """
    slots: list[tuple[Tree, str]] = []
    parts: list[Tree] = []
    for _ in range(count):
        if document.part["type"] == "file":
            holder: Tree = {"url": ""}
            parts.append({"type": "image_url", "image_url": holder})
            slots.append((holder, "url"))
        else:
            part = {"type": "input_image", "image_url": "", "detail": document.detail}
            parts.append(part)
            slots.append((part, "image_url"))
    for content in _contents(payload):
        for at, part in enumerate(content):
            if part is document.part:
                content[at : at + 1] = parts
                return slots
    raise AssertionError("a file's part is in the payload that it was found in")


def _contents(payload: Tree) -> Iterator[list[Any]]:
    items = payload.get("messages" if "messages" in payload else "input", ())
    for item in items if isinstance(items, list) else ():
        for name in ("content", "output"):
            if isinstance(item.get(name), list):
                yield item[name]
