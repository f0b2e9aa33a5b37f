"""An upload as a form with a file, written to disk as it arrives."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from vora_core.errors import (
    InvalidRequestError,
    RequestTimeoutError,
    RequestTooLargeError,
    UnsupportedMediaTypeError,
)
from vora_serve.gateway.middleware import find_header

_WRITE_BYTES = 2**20
_MAX_FIELD_BYTES = 4096
_MAX_FIELDS = 16
_FORM_BYTES = 64 * 1024  # of a form, beside its file
_LEAST_BYTES_PER_S = 64 * 1024  # of a client that means to finish


@dataclass
class Upload:
    """What a form held: its fields by name, and its file's name and size."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    size: int = 0


class _Form:
    """Takes the parser's callbacks: fields are kept, the file's bytes are handed on."""

    def __init__(self, boundary: bytes) -> None:
        self.upload = Upload()
        self.pending: list[bytes] = []
        self.ended = False
        self._name = ""
        self._header = b""
        self._value = b""
        self._is_file = False
        self._content = bytearray()
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._last,
            },
        )

    def _begin(self) -> None:
        self._name, self._is_file = "", False
        self._content.clear()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._name = options.get(b"name", b"").decode("utf-8", "replace")[:256]
            name = options.get(b"filename")
            if name is not None or self._name == "file":
                if self.upload.filename is not None:
                    raise InvalidRequestError("The form has more than one file.", param="file")
                self._is_file = True
                text = (name or b"file").decode("utf-8", "replace")
                self.upload.filename = "".join(c for c in text if c.isprintable())[:256] or "file"
        self._header = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.pending.append(data[start:end])
            self.upload.size += end - start
            return
        self._content += data[start:end]
        if len(self._content) > _MAX_FIELD_BYTES or len(self.upload.fields) >= _MAX_FIELDS:
            raise InvalidRequestError("The form's fields are too large or too many.")

    def _end(self) -> None:
        if not self._is_file:
            self.upload.fields[self._name] = self._content.decode("utf-8", "replace")

    def _last(self) -> None:
        self.ended = True


def _boundary(scope: Scope) -> bytes:
    kind, options = parse_options_header(find_header(scope, b"content-type") or b"")
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaTypeError("The content type must be multipart/form-data.")
    return options[b"boundary"]


def most_bytes(scope: Scope, limit: int) -> int:
    """The bytes that the form's file may have at most.

    Raises:
        RequestTooLargeError: more than ``limit``.
    """
    length = find_header(scope, b"content-length")
    if length is None or not length.isdigit():
        return limit
    if int(length) > limit + _FORM_BYTES:
        raise _too_large(limit)
    return min(int(length), limit)


def _too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"The file exceeds the limit batches.max_file_bytes, {limit} bytes.", code="file_too_large"
    )


async def receive_upload(
    scope: Scope, receive: Receive, path: Path, limit: int, timeout_s: float
) -> Upload:
    """Read a form, and write its file to a path.

    Args:
        path: Where the file goes; the caller removes it if this fails.
        limit: The file's most bytes.
        timeout_s: For a small form; larger ones have more time.

    Raises:
        InvalidRequestError, UnsupportedMediaTypeError, RequestTooLargeError, RequestTimeoutError
        ClientDisconnect: the client left before its end.
    """
    form = _Form(_boundary(scope))
    whole_s = timeout_s + limit / _LEAST_BYTES_PER_S
    try:
        async with asyncio.timeout(whole_s):
            with await asyncio.to_thread(path.open, "xb") as file:
                held = total = 0
                more = True
                while more:
                    async with asyncio.timeout(timeout_s):
                        message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    piece = message.get("body", b"")
                    more = message.get("more_body", False)
                    total += len(piece)
                    form.parser.write(piece)
                    if form.upload.size > limit or total > limit + _FORM_BYTES:
                        raise _too_large(limit)
                    held += len(piece)
                    if held >= _WRITE_BYTES or not more:
                        await asyncio.to_thread(file.writelines, form.pending)
                        form.pending, held = [], 0
    except TimeoutError:
        raise RequestTimeoutError(
            "The file did not arrive in time.", headers={"connection": "close"}
        ) from None
    except FormParserError:
        raise InvalidRequestError("The form is malformed.") from None
    if not form.ended:
        raise InvalidRequestError("The form is incomplete.")
    if form.upload.filename is None:
        raise InvalidRequestError(
            "The field 'file' is required.", param="file", code="missing_required_parameter"
        )
    return form.upload
