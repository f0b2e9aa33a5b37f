"""A closed-loop driver: so many connections, each with one request at a time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from vora_serve.gateway.http1 import Connection, Endpoint, Headers, HTTPClientError


@dataclass
class Outcome:
    """What one run saw. Times in seconds."""

    latencies: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)
    errors: int = 0
    elapsed: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.elapsed if self.elapsed else 0.0

    def percentile(self, share: float) -> float:
        """Of the latencies, in milliseconds."""
        ordered = sorted(self.latencies)
        if not ordered:
            return float("nan")
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _client(
    endpoint: Endpoint, headers: Headers, body: bytes, count: int, outcome: Outcome
) -> None:
    connection: Connection | None = None
    for _ in range(count):
        began = time.perf_counter()
        try:
            if connection is None or not connection.reusable:
                connection = await Connection.open(endpoint, 30)
            response = await connection.request(
                b"POST", b"/v1/chat/completions", headers, body, timeout=120
            )
            first = time.perf_counter()
            last = b""
            while piece := await response.read(120):
                last = piece
            kind = response.header(b"content-type") or b""
            whole = b"[DONE]" in last if kind.startswith(b"text/event-stream") else True
            if response.status != 200 or not whole or b'"error"' in last[:9]:
                outcome.errors += 1
                continue
        except HTTPClientError:
            outcome.errors += 1
            connection = None
            continue
        outcome.first_bytes.append(first - began)
        outcome.latencies.append(time.perf_counter() - began)
    if connection is not None:
        connection.close()


async def drive(
    port: int, body: bytes, requests: int, connections: int, key: str | None = None
) -> Outcome:
    """Send ``requests`` over ``connections`` and wait for all answers."""
    endpoint = Endpoint("127.0.0.1", port)
    headers: Headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if key is not None:
        headers.append((b"authorization", b"Bearer " + key.encode()))
    outcome = Outcome()
    began = time.perf_counter()
    each, rest = divmod(requests, connections)
    await asyncio.gather(
        *(
            _client(endpoint, headers, body, each + (index < rest), outcome)
            for index in range(connections)
        )
    )
    outcome.elapsed = time.perf_counter() - began
    return outcome
