"""What is known about a request while it is being served."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from vora_serve.gateway.admission import ANONYMOUS, ApiKey

SCOPE_KEY = "vora_serve.context"

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


@dataclass
class RequestContext:
    """One request's identity, phase and times. Times are ``time.perf_counter()`` seconds."""

    request_id: str
    client: str
    started: float = field(default_factory=time.perf_counter)
    key: ApiKey = field(default_factory=lambda: ANONYMOUS)
    phase: str = "receive"
    """What it is doing: receive, queue, images, prefill, decode."""
    waited_s: float = 0.0
    """Spent on others: the client's body, the queue, the images' hosts, the engine."""
    images: str = ""
    """Sizes and, where known, tokens of the images as the engine gets them."""
    dropped_fields: list[str] = field(default_factory=list)
    offline: bool = False
    """Whether it is a batch's, for which nobody waits."""
    span: Any = None
    """The request's OpenTelemetry span, where traces are made."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What the access log says besides the usual."""

    def overhead_s(self) -> float:
        """Seconds so far that were the gateway's own."""
        return max(0.0, time.perf_counter() - self.started - self.waited_s)


def request_id_from(value: bytes | None) -> str:
    """The caller's id where it is harmless, else a fresh one."""
    if value is not None and _REQUEST_ID.fullmatch(value):
        return value.decode("ascii")
    return f"req-{secrets.token_hex(16)}"
