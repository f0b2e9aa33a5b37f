"""A fake engine over a real socket: speaks enough of vLLM's HTTP, and fails on demand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from vora_serve.gateway.protocol import GatewayProtocol


@dataclass
class FakeEngine:
    """Knobs that a test turns, and what the engine saw."""

    model: str = "vora-test"
    words: list[str] = field(default_factory=lambda: ["a", " red", " circle"])
    delay_s: float = 0.0
    first_delay_s: float = 0.0
    status: int = 200
    error_message: str = "the fake engine was told to fail"
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Tools that a chat's answer calls after its words: names and arguments as JSON."""
    first_call: int = 0
    """The number in the id of the first of them."""
    response_id: str = "resp_1"
    output: list[dict[str, Any]] | None = None
    """A response's items, instead of a message."""
    finish: dict[str, Any] = field(default_factory=lambda: {"finish_reason": "stop"})
    """Why a chat's answer ends, as vLLM says it."""
    die_after: int | None = None
    """Abort the connection after so many events."""
    healthy: bool = True
    metrics_status: int = 200
    looks: bool = True
    """Decode the images of requests, as an engine would."""
    image_settings: dict[str, Any] | None = None
    """Announced, so that images come as pixels."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    cancelled: int = 0
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    close_after_response: bool = False
    url: str = ""

    # ------------------------------------------------------------------ handlers

    async def metrics(self, _: Request) -> Response:
        text = f"vllm:num_requests_running {self.running}\n"
        return Response(text, self.metrics_status, media_type="text/plain")

    async def health(self, _: Request) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def models(self, _: Request) -> Response:
        card = {
            "id": self.model,
            "object": "model",
            "created": 1,
            "owned_by": "vllm",
            "root": "/secret/path/to/model",
            "max_model_len": 2048,
        }
        if self.image_settings is not None:
            card["vora_images"] = self.image_settings
        return JSONResponse({"object": "list", "data": [card]})

    def _look(self, payload: dict[str, Any]) -> int:
        """Decode the request's images, as an engine would; their tokens."""
        parts: list[str] = []
        for message in payload.get("messages", payload.get("input", ())):
            content = None
            if isinstance(message, dict):  # what was said, or what a tool gave back
                content = message.get("content", message.get("output"))
            for part in content if isinstance(content, list) else ():
                holder = part.get("image_url")
                if holder is not None:
                    parts.append(holder["url"] if isinstance(holder, dict) else holder)
        for url in parts:
            assert url.startswith("data:image/"), "the gateway forwards data URLs only"
            if not self.looks:
                continue
            image = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
            image.load()
            self.image_sizes.append(image.size)
        return 64 * len(parts)

    async def generate(self, request: Request) -> Response:
        payload = json.loads(await request.body())
        self.seen.append(payload)
        self.headers.append(dict(request.headers))
        headers = {"connection": "close"} if self.close_after_response else {}
        if self.status != 200:
            error = {"message": self.error_message, "type": "Error", "code": self.status}
            return JSONResponse({"error": error}, self.status, headers)
        image_tokens = self._look(payload)
        path = request.url.path
        if payload.get("stream"):
            body = self._stream(payload, path, image_tokens)
            return StreamingResponse(body, media_type="text/event-stream", headers=headers)
        self.running += 1
        try:
            work = asyncio.ensure_future(
                asyncio.sleep(self.first_delay_s + self.delay_s * len(self.words))
            )
            gone = asyncio.ensure_future(request.receive())
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.cancelled += 1
                work.cancel()
                return Response(status_code=499)
            gone.cancel()
        finally:
            self.running -= 1
        return JSONResponse(self.non_streaming(payload, path, image_tokens), headers=headers)

    async def tokenize(self, request: Request) -> Response:
        payload = json.loads(await request.body())
        self.seen.append(payload)
        count = 10 + self._look(payload)
        return JSONResponse({"count": count, "max_model_len": 2048, "tokens": [1] * count})

    def _tool_calls(self) -> list[dict[str, Any]]:
        return [
            {
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for index, (name, arguments) in enumerate(self.calls, self.first_call)
        ]

    def _usage(self, image_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": 10 + image_tokens,
            "completion_tokens": len(self.words),
            "total_tokens": 10 + image_tokens + len(self.words),
            "prompt_tokens_details": {
                "cached_tokens": 4,
                "multimodal_tokens": {"image": image_tokens} if image_tokens else None,
            },
        }

    def non_streaming(
        self, payload: dict[str, Any], path: str, image_tokens: int
    ) -> dict[str, Any]:
        text = "".join(self.words)
        usage = self._usage(image_tokens)
        if path.endswith("responses"):
            cut_off = self.finish["finish_reason"] == "length"
            return {
                "id": self.response_id,
                "object": "response",
                "created_at": 1,
                "model": payload["model"],
                "status": "incomplete" if cut_off else "completed",
                "parallel_tool_calls": True,
                "tool_choice": "auto",
                "tools": [],
                "output": self.output
                or [
                    {
                        "id": "msg_" + self.response_id.removeprefix("resp_"),
                        "type": "message",
                        "role": "assistant",
                        "status": "completed",
                        "content": [{"type": "output_text", "text": text, "annotations": []}],
                    }
                ],
                "usage": {
                    "input_tokens": usage["prompt_tokens"],
                    "output_tokens": usage["completion_tokens"],
                    "total_tokens": usage["total_tokens"],
                    "input_tokens_details": {"cached_tokens": 4},
                    "output_tokens_details": {"reasoning_tokens": 0},
                },
            }
        count = payload.get("n", 1)
        if path.endswith("chat/completions"):
            choices = [
                {
                    "index": index,
                    # vLLM writes what it does not have as null.
                    "message": {
                        "role": "assistant",
                        "content": text,
                        "refusal": None,
                        "function_call": None,
                        **({"tool_calls": self._tool_calls()} if self.calls else {}),
                    },
                    "logprobs": None,
                    "stop_reason": None,
                    **self.finish,
                }
                for index in range(count)
            ]
            kind = "chat.completion"
        else:
            choices = [
                {"index": index, "text": text, "finish_reason": "stop"} for index in range(count)
            ]
            kind = "text_completion"
        return {
            "id": "cmpl-1",
            "object": kind,
            "created": 1,
            "model": payload["model"],
            "choices": choices,
            "usage": usage,
            "service_tier": None,
        }

    async def _stream(
        self, payload: dict[str, Any], path: str, image_tokens: int
    ) -> AsyncIterator[bytes]:
        self.running += 1
        finished = False
        try:
            await asyncio.sleep(self.first_delay_s)
            if path.endswith("responses"):
                async for event in self._response_events(payload, path, image_tokens):
                    yield event
                finished = True
                return
            chat = path.endswith("chat/completions")
            base: dict[str, Any] = {
                "id": "cmpl-1",
                "object": "chat.completion.chunk" if chat else "text_completion",
                "created": 1,
                "model": payload["model"],
            }
            options = payload.get("stream_options") or {}
            running_usage: dict[str, Any] = (
                {"usage": self._usage(image_tokens)}
                if options.get("continuous_usage_stats")
                else {}
            )
            for count, word in enumerate(self.words):
                if self.die_after is not None and count >= self.die_after:
                    raise RuntimeError("the fake engine was told to die")
                choice: dict[str, Any] = {"index": 0, "finish_reason": None}
                choice |= {"delta": {"content": word}} if chat else {"text": word}
                yield sse_event({**base, "choices": [choice], **running_usage})
                await asyncio.sleep(self.delay_s)
            for index, call in enumerate(self._tool_calls() if chat else ()):
                arguments = call["function"]["arguments"]
                named = {**call["function"], "arguments": ""}
                pieces: list[dict[str, Any]] = [
                    {**call, "function": named},
                    {"function": {"arguments": arguments[:3]}},
                    {"function": {"arguments": arguments[3:]}},
                ]
                for piece in pieces:
                    delta = {"tool_calls": [{"index": index, **piece}]}
                    part = {"index": 0, "finish_reason": None, "delta": delta}
                    yield sse_event({**base, "choices": [part], **running_usage})
            last: dict[str, Any] = {"index": 0, **self.finish}
            last |= {"delta": {}} if chat else {"text": ""}
            yield sse_event({**base, "choices": [last]})
            if options.get("include_usage"):
                yield sse_event({**base, "choices": [], "usage": self._usage(image_tokens)})
            yield b"data: [DONE]\n\n"
            finished = True
        finally:
            self.running -= 1
            if not finished:
                self.cancelled += 1

    async def _response_events(
        self, payload: dict[str, Any], path: str, image_tokens: int
    ) -> AsyncIterator[bytes]:
        whole = self.non_streaming(payload, path, image_tokens)
        started = {**whole, "status": "in_progress", "output": [], "usage": None}
        yield _named("response.created", {"response": started, "sequence_number": 0})
        for count, word in enumerate(self.words):
            body = {
                "delta": word,
                "item_id": "msg_1",
                "output_index": 0,
                "content_index": 0,
                "sequence_number": count + 1,
                "logprobs": [],
            }
            yield _named("response.output_text.delta", body)
            await asyncio.sleep(self.delay_s)
        number = len(self.words) + 1
        yield _named("response.completed", {"response": whole, "sequence_number": number})

    def app(self) -> Starlette:
        generate = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/metrics", self.metrics),
                Route("/v1/models", self.models),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                *(Route(path, self.generate, methods=["POST"]) for path in generate),
            ]
        )


def sse_event(body: dict[str, Any]) -> bytes:
    """An event's line."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _named(name: str, body: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + sse_event({"type": name, **body})


class ThreadServer:
    """uvicorn in a thread of its own, on a real socket."""

    def __init__(self, app: Any, uds: Path | None = None) -> None:
        self.config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            uds=str(uds) if uds is not None else None,
            log_config=None,
            log_level="critical",
            lifespan="on" if not isinstance(app, Starlette) or hasattr(app, "openapi") else "off",
            http=GatewayProtocol,
            ws="none",
            timeout_graceful_shutdown=1,
            server_header=False,
            proxy_headers=False,
        )
        self.server = uvicorn.Server(self.config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            # Faults on purpose are no noise.
            self.loop.set_exception_handler(lambda *_: None)
            await self.server.serve()

        uvloop.run(main())

    def start(self) -> int:
        self._thread.start()
        while not self.server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
            threading.Event().wait(0.005)
        if self.config.uds is not None:
            return 0
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(10)

    def kill(self) -> None:
        """Abort every connection, like a process that was killed."""
        self.server.force_exit = True
        self.server.should_exit = True
        assert self.loop is not None
        for connection in list(self.server.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                self.loop.call_soon_threadsafe(transport.abort)
        self._thread.join(10)


@contextmanager
def running(engine: FakeEngine, uds: Path | None = None) -> Iterator[FakeEngine]:
    """The engine, listening on a port or a unix socket."""
    server = ThreadServer(engine.app(), uds)
    port = server.start()
    engine.url = f"unix:{uds}" if uds is not None else f"http://127.0.0.1:{port}"
    try:
        yield engine
    finally:
        server.stop()
