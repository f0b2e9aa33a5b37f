"""The lines of a batch's files: requests to read, and answers that were written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from vora_serve.gateway.batches.models import new_id

_MAX_ERRORS = 100
_MAX_ID_CHARS = 512

Tree = dict[str, Any]


@dataclass(frozen=True)
class RequestLine:
    """One request of a batch: its caller's id, its body as JSON, and how often it was made."""

    custom_id: str
    body: bytes
    attempts: int = 0


class _LineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def _read(line: bytes, endpoint: str, limit: int) -> tuple[str, Tree]:
    if len(line) > limit:
        raise _LineError("line_too_long", f"the line has more than {limit} bytes")
    try:
        tree = from_json(line, allow_inf_nan=False)
    except ValueError:
        raise _LineError("invalid_json_line", "the line is not valid JSON") from None
    if not isinstance(tree, dict):
        raise _LineError("invalid_json_line", "the line is not a JSON object")
    custom_id = tree.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID_CHARS:
        raise _LineError(
            "invalid_custom_id",
            f"'custom_id' must be a text of 1 to {_MAX_ID_CHARS} characters",
            "custom_id",
        )
    if tree.get("method") != "POST":
        raise _LineError("invalid_method", "'method' must be POST", "method")
    if tree.get("url") != endpoint:
        raise _LineError("mismatched_url", f"'url' must be {endpoint}, the batch's endpoint", "url")
    if not isinstance(tree.get("body"), dict):
        raise _LineError("invalid_body", "'body' must be a JSON object", "body")
    if tree["body"].get("stream"):
        raise _LineError("invalid_body", "a batch's requests cannot stream", "body.stream")
    return custom_id, tree["body"]


def _lines(path: Path, limit: int) -> Iterator[tuple[int, bytes]]:
    """Numbers from 1, and lines that are not empty; of one that is too long, its beginning."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit + 2):
            number += 1
            if len(line) == limit + 2 and not line.endswith(b"\n"):
                while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
                    pass
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.strip()
            if line:
                yield number, line


def check(path: Path, endpoint: str, max_requests: int, limit: int) -> tuple[int, list[Tree]]:
    """Read a whole input file.

    Args:
        path: The file.
        endpoint: The only one that its requests may name.
        max_requests: The most lines.
        limit: The most bytes of a line.

    Returns:
        The number of requests, and what is wrong with the file: at most 100 of OpenAI's errors.
    """
    seen: set[str] = set()
    errors: list[Tree] = []

    def report(number: int | None, code: str, message: str, param: str | None = None) -> None:
        text = message if number is None else f"Line {number}: {message}."
        errors.append({"code": code, "line": number, "message": text, "param": param})

    for number, line in _lines(path, limit):
        if len(seen) >= max_requests:
            report(None, "too_many_requests", f"The file has more than {max_requests} requests.")
            break
        try:
            custom_id, _ = _read(line, endpoint, limit)
            if custom_id in seen:
                raise _LineError("duplicate_custom_id", "'custom_id' is there twice", "custom_id")
            seen.add(custom_id)
        except _LineError as error:
            report(number, error.code, str(error), error.param)
            if len(errors) >= _MAX_ERRORS:
                break
    if not seen and not errors:
        report(None, "empty_file", "The file has no requests.")
    return len(seen), errors


def requests(path: Path, endpoint: str, limit: int, done: set[str]) -> Iterator[RequestLine]:
    """The requests of a file that was checked, without those that have been answered."""
    for _, line in _lines(path, limit):
        custom_id, body = _read(line, endpoint, limit)
        if custom_id not in done:
            yield RequestLine(custom_id, to_json(body))


def answered(path: Path) -> set[str]:
    """The requests that a file of answers has; a last line that was cut off is removed.

    A batch that was interrupted goes on after these.
    """
    done: set[str] = set()
    if not path.exists():
        return done
    end = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                done.add(from_json(line)["custom_id"])
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
        file.truncate(end)
    return done


def answer_line(custom_id: str, status: int, request_id: str, body: Any) -> bytes:
    """A line for a request that was answered, in whatever way."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _line(custom_id, response, None)


def error_line(custom_id: str, code: str, message: str) -> bytes:
    """A line for a request that was never made."""
    return _line(custom_id, None, {"code": code, "message": message})


def _line(custom_id: str, response: Tree | None, error: Tree | None) -> bytes:
    tree = {
        "id": new_id("batch_req_"),
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return to_json(tree) + b"\n"
