"""``python -m benchmarks.gateway.clients``: what asking an engine costs, by HTTP client.

The gateway's own HTTP/1.1 client beside httpx, both asking the same mock engine in turns: CPU time
of the asking process for a whole answer and for an event of a stream. This is what decides whether
the gateway may use a general client.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import httpx
import uvloop

from benchmarks.gateway.__main__ import request_body
from benchmarks.gateway.mock_engine import WORDS
from benchmarks.gateway.targets import mock_engine
from vora_serve.gateway.http1 import Connection, Endpoint, Headers

PATH = "/v1/chat/completions"
HEADERS: Headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]

Client = Callable[[int, bytes, int], Awaitable[int]]


async def own(port: int, body: bytes, requests: int) -> int:
    """One connection; the pieces of all answers."""
    connection = await Connection.open(Endpoint("127.0.0.1", port), 5)
    pieces = 0
    for _ in range(requests):
        response = await connection.request(b"POST", PATH.encode(), HEADERS, body, 60)
        while await response.read(60):
            pieces += 1
    connection.close()
    return pieces


async def general(port: int, body: bytes, requests: int) -> int:
    """The same through httpx."""
    pieces = 0
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        for _ in range(requests):
            async with client.stream("POST", PATH, content=body, headers=headers) as response:
                async for _piece in response.aiter_raw():
                    pieces += 1
    return pieces


async def measure(client: Client, port: int, body: bytes, requests: int, at_once: int) -> float:
    """Microseconds of CPU for a request."""
    await client(port, body, 3)
    gc.collect()
    before = time.process_time()
    await asyncio.gather(*(client(port, body, requests) for _ in range(at_once)))
    return 1e6 * (time.process_time() - before) / (requests * at_once)


def run(repeats: int) -> str:
    """The table."""
    got: dict[tuple[str, str], list[float]] = {}
    clients: dict[str, Client] = {"own": own, "httpx": general}
    with mock_engine() as at_once, mock_engine(0.005) as slowly:
        scenarios = {
            "whole answer": (at_once.port, request_body("text", 0), 300, 8),
            f"stream of {WORDS} events, 5 ms apart": (
                slowly.port, request_body("stream", 0), 20, 32,
            ),
        }  # fmt: skip
        for _ in range(repeats):  # in turns: both see the same machine
            for scenario, given in scenarios.items():
                for name, client in clients.items():
                    cost = uvloop.run(measure(client, *given))
                    got.setdefault((scenario, name), []).append(cost)
    rows = []
    for scenario in scenarios:
        costs = {name: got[scenario, name] for name in clients}
        ratios = [b / a for a, b in zip(costs["own"], costs["httpx"], strict=True)]
        middle = {name: statistics.median(cost) for name, cost in costs.items()}
        rows.append(
            f"| {scenario} | {middle['own']:.0f} | {middle['httpx']:.0f} "
            f"| {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
        )
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, httpx {version('httpx')}, Python "
        f"{sys.version.split()[0]}, uvloop {version('uvloop')}, {os.cpu_count()} cores, load "
        f"average {os.getloadavg()[0]:.1f}; medians of {repeats} paired repeats. Microseconds of "
        "CPU per request in the asking process.\n\n"
        "| scenario | own client | httpx | httpx / own |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway.clients", description=__doc__
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    table = run(args.repeats)
    sys.stdout.write(table)
    if args.output is not None:
        args.output.write_text(table)


if __name__ == "__main__":
    main()
