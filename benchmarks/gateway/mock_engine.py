"""A mock engine that answers at once, so that only what is in front of it costs time.

Run as ``python -m benchmarks.gateway.mock_engine PORT``. It also serves ``/image.jpg``.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import sys

import httptools
import uvloop
from PIL import Image

MODEL = "mock"
WORDS = 20


def make_image(size: int = 1_000_000) -> bytes:
    """A JPEG of about ``size`` bytes: noise, as photographs are hard to compress."""
    side = 1024
    while True:
        buffer = io.BytesIO()
        Image.effect_noise((side, side), 90).convert("RGB").save(buffer, "JPEG", quality=90)
        if buffer.tell() >= 0.8 * size:
            return buffer.getvalue()
        side = int(side * 1.2)


def _http(body: bytes, kind: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


def _whole() -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "word " * WORDS},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": WORDS, "total_tokens": 20 + WORDS},
        }
    ).encode()


def _chunk(**choice: object) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": None, **choice}],
    }
    data = b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


MODELS = _http(json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())
HEALTH = _http(b"{}")
WHOLE = _http(_whole())
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
WORD = _chunk(delta={"content": "word "})
LAST = _chunk(delta={}, finish_reason="stop")
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class MockEngine(asyncio.Protocol):
    """One connection."""

    image: bytes = b""
    token_delay_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._target = b""
        self._streaming: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._streaming is not None:
            self._streaming.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target = url

    def on_body(self, body: bytes) -> None:
        if len(self._body) < 4096:
            self._body += body[:4096]
        self._tail = body[-256:]

    def on_message_complete(self) -> None:
        write = self._transport.write  # type: ignore[attr-defined]
        if self._target.endswith(b"/models"):
            write(MODELS)
        elif self._target.startswith(b"/image"):
            write(_http(self.image, b"image/jpeg"))
        elif self._target.endswith(b"/chat/completions"):
            whole = self._body + self._tail
            if b'"stream":true' in whole or b'"stream": true' in whole:
                self._streaming = asyncio.get_running_loop().create_task(self._stream())
            else:
                write(WHOLE)
        else:
            write(HEALTH)
        self._body = b""

    async def _stream(self) -> None:
        write = self._transport.write  # type: ignore[attr-defined]
        write(STREAM_HEAD)
        for _ in range(WORDS):
            write(WORD)
            await asyncio.sleep(self.token_delay_s)
        write(LAST + DONE)


async def main(port: int, token_delay_s: float) -> None:
    MockEngine.image = make_image()
    MockEngine.token_delay_s = token_delay_s
    loop = asyncio.get_running_loop()
    server = await loop.create_server(MockEngine, "127.0.0.1", port, backlog=4096)
    gc.freeze()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
