"""A small HTTP server that looks into answers for the playground; only gateways speak to it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import socket
import threading
import time
from typing import Any

import uvicorn
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from model_plugin.decoding import decode
from model_plugin.errors import ImageError, VoRAError
from vora_serve.explain.look import Explainer

MAX_BODY = 64 * 2**20
MAX_PIXELS = 32_000_000
MAX_WAITING = 8
#: 16 MB of weights; of a longer answer, the beginning is explained.
MAX_VALUES = 8_000_000


class Asked(BaseModel):
    """A question as it was sent to ``/v1/chat/completions``, and what was answered."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=256)
    answer: str = Field(min_length=1, max_length=4000)


class _WrongError(Exception):
    """The request is at fault; the message says how."""


def _error(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": None}}, status
    )


def _image(url: str) -> Image.Image:
    """An image from a ``data:`` URL; this process fetches nothing."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise _WrongError("Only images that were uploaded can be looked into, not addresses.")
    try:
        image, _ = decode(base64.b64decode(data, validate=True))
    except (binascii.Error, ImageError):
        raise _WrongError("The image cannot be read.") from None
    if image.width * image.height > MAX_PIXELS:
        raise _WrongError("The image is too large to be looked into.")
    return image


def _messages(asked: Asked) -> list[dict[str, Any]]:
    result = []
    for message in asked.messages:
        content = message.get("content")
        if isinstance(content, list):
            parts: list[dict[str, Any]] = []
            for part in content:
                if not isinstance(part, dict):
                    raise _WrongError("A message has a part that is not an object.")
                if part.get("type") == "image_url":
                    holder = part.get("image_url")
                    url = holder.get("url") if isinstance(holder, dict) else holder
                    parts.append({"type": "image", "image": _image(str(url))})
                else:
                    parts.append({"type": "text", "text": str(part.get("text", ""))})
            content = parts
        result.append({"role": str(message.get("role", "user")), "content": content})
    return result


class Looking:
    """What the application works with: a model, one question at a time, and how long ago the last.

    Args:
        explainer: the model, or in one sentence why it could not be loaded.
    """

    def __init__(self, explainer: Explainer | str) -> None:
        self._explainer = explainer
        self._turn = threading.Lock()  # one at a time: the hooks are the model's
        self._asking = 0
        self._last = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last answer; 0 while one is computed."""
        return 0.0 if self._asking else time.monotonic() - self._last

    async def look(self, asked: Asked) -> JSONResponse:
        """The answer to one question."""
        if isinstance(self._explainer, str):
            return _error(503, self._explainer)
        if self._asking >= MAX_WAITING:
            return _error(503, "Too many answers wait to be looked into; try again soon.")
        self._asking += 1
        try:
            return JSONResponse(await run_in_threadpool(self._compute, self._explainer, asked))
        except (_WrongError, VoRAError) as error:
            return _error(400, str(error))
        finally:
            self._asking -= 1
            self._last = time.monotonic()

    def _compute(self, explainer: Explainer, asked: Asked) -> dict[str, Any]:
        with self._turn:
            return explainer.explain(_messages(asked), asked.answer, MAX_VALUES).packed()


def make_app(looking: Looking) -> Starlette:
    """The ASGI application: ``POST /explain``, ``GET /health``."""

    async def explain(request: Request) -> JSONResponse:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                return _error(413, "The body is too large.")
        try:
            asked = Asked.model_validate_json(body)
        except ValidationError:
            return _error(400, "The body must have model, messages and answer.")
        return await looking.look(asked)

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[Route("/explain", explain, methods=["POST"]), Route("/health", health)]
    )


def serve(
    explainer: Explainer | str, listener: socket.socket, idle_exit_s: float | None = None
) -> None:
    """Serve until asked to stop, or until nobody has asked for ``idle_exit_s`` seconds."""
    looking = Looking(explainer)
    config = uvicorn.Config(make_app(looking), log_level="warning", server_header=False)
    server = uvicorn.Server(config)

    async def main() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not serving.done():
            await asyncio.wait([serving], timeout=0.5)
            if idle_exit_s is not None and looking.idle_s > idle_exit_s:
                server.should_exit = True
        await serving

    asyncio.run(main())
