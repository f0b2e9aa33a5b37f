"""One request of a batch, through the same layers as a request over HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pydantic_core import from_json
from starlette.types import Message, Receive, Scope, Send

from vora_serve.gateway.admission import ApiKey
from vora_serve.gateway.context import SCOPE_KEY, RequestContext
from vora_serve.gateway.generation import PATHS, GenerationResponse
from vora_serve.gateway.middleware import ContextMiddleware
from vora_serve.gateway.schemas import Kind
from vora_serve.gateway.state import GatewayState

_KINDS: dict[str, Kind] = {path.decode(): kind for kind, path in PATHS.items()}


@dataclass
class Answer:
    """What came of a request.

    Attributes:
        status: HTTP's.
        request_id: As in the answer's header, and in the logs.
        retry_after: Seconds, where the answer names them.
        body: JSON.
    """

    status: int = 0
    request_id: str = ""
    retry_after: float | None = None
    body: bytes = b""

    def tree(self) -> Any:
        """The body's JSON."""
        return from_json(self.body)

    @property
    def code(self) -> str | None:
        """An error's code."""
        try:
            found = self.tree()["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None


@dataclass(eq=False)
class Call:
    """A request that is being made.

    Args:
        state: The gateway's.
        key: In whose name.
        endpoint: Which API.
        body: The request.
    """

    state: GatewayState
    key: ApiKey
    endpoint: str
    body: bytes
    answer: Answer = field(default_factory=Answer)
    _context: RequestContext | None = None

    @property
    def phase(self) -> str:
        """What it is doing, as in :class:`RequestContext`."""
        return self._context.phase if self._context is not None else ""

    async def run(self) -> Answer:
        """Make the request; every failure is an answer."""
        layers = ContextMiddleware(self._generate, self.state.metrics, self.state.tracer)
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": self.endpoint,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(self.body)).encode()),
            ],
            "client": ("batch", 0),
            # In metrics and logs, apart from requests that somebody waits for.
            "route": SimpleNamespace(path=f"batch {self.endpoint}"),
        }
        await layers(scope, self._receiver(), self._take)
        return self.answer

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope[SCOPE_KEY]
        context.key, context.offline = self.key, True
        self._context = context
        await GenerationResponse(_KINDS[self.endpoint], self.state)(scope, receive, send)

    def _receiver(self) -> Receive:
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # no client that could leave
            sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}

        return receive

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            self.answer.status = message["status"]
            self.answer.request_id = headers.get(b"x-request-id", b"").decode()
            after = headers.get(b"retry-after")
            self.answer.retry_after = float(after) if after is not None else None
        else:
            self.answer.body += message.get("body", b"")
