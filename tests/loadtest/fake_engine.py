"""A fake OpenAI server, for faults that a real engine does not make to order; it is no engine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeEngine(ThreadingHTTPServer):
    """Streams ``length`` tokens to every request; what goes wrong is set on it.

    ``fault`` is None, ``"500"``, ``"breaks off"`` (the stream ends early, well-formed),
    ``"error event"`` (a stream that says error midway), or ``"vanish"`` (the connection is cut).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = "fake"
        self.fault: str | None = None
        self.faulty_after = 0
        self.served = 0
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are none of a test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeEngine

    def log_message(self, *args: Any) -> None:
        pass

    def _json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            model = {"id": self.server.model, "object": "model", "root": "/fake"}
            self._json(200, {"object": "list", "data": [model]})
        elif self.path == "/health":
            self._json(200, {})
        else:
            self._json(404, {"error": {"message": "no"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        prompt = 10
        if not body.get("stream"):
            return self._json(200, {"usage": {"prompt_tokens": prompt, "completion_tokens": 1}})
        self.server.served += 1
        fault = self.server.fault if self.server.served > self.server.faulty_after else None
        if fault == "500":
            return self._json(500, {"error": {"message": "broken on purpose"}})
        if fault == "vanish":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        length = body["max_completion_tokens"]
        events: list[dict[str, Any]] = [
            {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
        ]
        events += [{"choices": [{"delta": {"content": " x"}}]}] * length
        if fault == "breaks off":
            length //= 2
            events = events[: 1 + length]
        elif fault == "error event":
            length //= 2
            events = [*events[: 1 + length], {"error": {"message": "engine died"}}]
        usage = {"prompt_tokens": prompt + 100 * len(str(body).split("data:image")[1:])}
        if fault != "error event":
            events.append({"choices": [], "usage": usage | {"completion_tokens": length}})
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
        return None


@contextmanager
def fake_engine() -> Iterator[FakeEngine]:
    """A running one."""
    server = FakeEngine()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
