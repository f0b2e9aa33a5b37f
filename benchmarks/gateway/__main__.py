"""``python -m benchmarks.gateway``: added latency, throughput, CPU and memory of gateways.

One mock engine, asked directly and through each gateway: text, streams, a data URL of about 1 MB,
and an image to be fetched. Prints a table in Markdown; ``--output`` also writes it to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import statistics
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from benchmarks.gateway.load import Outcome, drive
from benchmarks.gateway.mock_engine import MODEL, make_image
from benchmarks.gateway.targets import Target, gateway, litellm, mock_engine, vllm_router


def request_body(scenario: str, engine_port: int) -> bytes:
    """The request that a scenario sends."""
    content: object = "Describe the image in one sentence, please."
    if scenario in ("data_url", "fetched"):
        url = f"http://127.0.0.1:{engine_port}/image.jpg"
        if scenario == "data_url":
            url = f"data:image/jpeg;base64,{base64.b64encode(make_image()).decode()}"
        content = [
            {"type": "text", "text": "Describe it."},
            {"type": "image_url", "image_url": {"url": url}},
        ]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 20,
        "stream": scenario in ("stream", "streams_1000"),
    }
    return json.dumps(body).encode()


# scenario -> (requests, connections for the throughput run)
SCENARIOS = {
    "text": (4000, 32),
    "stream": (1000, 32),
    "data_url": (150, 8),
    "fetched": (150, 8),
}


async def measure(
    target: Target, scenario: str, engine_port: int, scale: float
) -> dict[str, float]:
    """One repeat: latency alone, then throughput under load."""
    requests, connections = SCENARIOS[scenario]
    if target.name == "litellm":
        requests //= 4  # so slow that the rest of the run would be waiting
    requests = max(connections, int(requests * scale))
    body = request_body(scenario, engine_port)
    await drive(target.port, body, max(20, requests // 20), connections, target.key)  # warm up
    alone = await drive(target.port, body, max(40, requests // 10), 1, target.key)
    before = target.cpu_s()
    loaded: Outcome = await drive(target.port, body, requests, connections, target.key)
    cpu = target.cpu_s() - before
    return {
        "p50_ms": alone.percentile(0.50),
        "p95_ms": alone.percentile(0.95),
        "p99_ms": alone.percentile(0.99),
        "rate": loaded.rate,
        "cpu_s_per_1000": 1000 * cpu / max(1, requests),
        "rate_per_core": requests / cpu if cpu else float("nan"),
        "memory_mib": target.memory_mib(),
        "errors": float(alone.errors + loaded.errors),
    }


def run(args: argparse.Namespace) -> str:
    """All targets and scenarios; the tables.

    All targets stand side by side while one after the other is measured, scenario by scenario and
    repeat by repeat: whatever else the machine does meets all of them.
    """
    got: dict[tuple[str, str], list[dict[str, float]]] = {}
    notes: list[str] = []
    with ExitStack() as stack:
        engine = stack.enter_context(mock_engine())
        targets = {"direct": engine, "vora-serve": stack.enter_context(gateway(engine.port))}
        if args.earlier is not None:
            targets["earlier"] = stack.enter_context(gateway(engine.port, args.earlier.resolve()))
        for name, start, program in (
            ("litellm", litellm, args.litellm),
            ("vllm-router", vllm_router, args.vllm_router),
        ):
            if program is None:
                continue
            try:
                targets[name] = stack.enter_context(start(engine.port, program))
                notes.append(f"{name} is {_version(name, program)}.")
            except RuntimeError as error:
                notes.append(f"{name} could not be started: {error}.")
        for _ in range(args.repeats):
            for scenario in args.scenarios:
                for name, target in targets.items():
                    outcome = asyncio.run(measure(target, scenario, engine.port, args.scale))
                    got.setdefault((name, scenario), []).append(outcome)
                    sys.stderr.write(
                        _row(name, scenario, outcome, dict.fromkeys(outcome, 0.0)) + "\n"
                    )
    rows = []
    for scenario in args.scenarios:
        middle = {
            name: {
                key: statistics.median(repeat[key] for repeat in got[name, scenario])
                for key in got[name, scenario][0]
            }
            for name in targets
        }
        rows += [_row(name, scenario, values, middle["direct"]) for name, values in middle.items()]
    for other in ("litellm", "earlier"):
        if other in targets:
            notes += [_ratio(scenario, got, other) for scenario in args.scenarios]
    if args.streams:
        notes.append(asyncio.run(many_streams(args.streams)))
    return _table(rows, args.repeats) + "".join(f"\n{note}\n" for note in notes)


def _version(package: str, program: Path) -> str:
    """What is installed beside a program."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    command = [str(program.parent / "python"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _ratio(scenario: str, got: dict[tuple[str, str], list[dict[str, float]]], other: str) -> str:
    """Requests per core beside another target's, repeat by repeat."""
    pairs = zip(got["vora-serve", scenario], got[other, scenario], strict=True)
    ratios = [ours["rate_per_core"] / theirs["rate_per_core"] for ours, theirs in pairs]
    return (
        f"{scenario}: {statistics.median(ratios):.2f} times the requests per core of {other} "
        f"({min(ratios):.2f} to {max(ratios):.2f})."
    )


async def many_streams(count: int) -> str:
    """So many streams at one time, 50 ms between tokens."""
    with mock_engine(0.05) as engine, gateway(engine.port) as target:
        outcome = await drive(target.port, request_body("streams_1000", 0), count, count)
        return (
            f"{count} concurrent streams through vora-serve: {outcome.errors} errors, "
            f"p50 {outcome.percentile(0.5):.0f} ms, p99 {outcome.percentile(0.99):.0f} ms "
            f"(1000 ms of it are the engine's), peak memory {target.memory_mib():.0f} MiB."
        )


def _row(name: str, scenario: str, got: dict[str, float], base: dict[str, float]) -> str:
    added = [got[key] - base[key] for key in ("p50_ms", "p95_ms", "p99_ms")]
    shown = " | ".join(
        f"{got[key]:.2f}" if name == "direct" else f"+{plus:.2f}"
        for key, plus in zip(("p50_ms", "p95_ms", "p99_ms"), added, strict=True)
    )
    return (
        f"| {name} | {scenario} | {shown} | {got['rate']:.0f} | {got['rate_per_core']:.0f} "
        f"| {got['cpu_s_per_1000']:.2f} | {got['memory_mib']:.0f} | {got['errors']:.0f} |"
    )


def _table(rows: list[str], repeats: int) -> str:
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {os.cpu_count()} cores "
        f"({platform.machine()}), load average {os.getloadavg()[0]:.1f} at the end; driver and "
        f"engine share the cores. Medians of {repeats} repeats. Latencies in ms with one request "
        "at a time, added to direct; memory is the peak of the whole run so far.\n\n"
        "| target | scenario | p50 | p95 | p99 | requests/s | requests/s per core "
        "| CPU s per 1000 | peak MiB | errors |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--streams", type=int, default=1000, help="concurrent streams; 0: none")
    parser.add_argument(
        "--litellm", type=Path, help="LiteLLM's program, in an environment of its own"
    )
    parser.add_argument(
        "--earlier", type=Path, metavar="TREE", help="checkout of an earlier release, measured too"
    )
    parser.add_argument("--vllm-router", type=Path, help="vllm-router's program, likewise")
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    uvloop.install()
    table = run(args)
    sys.stdout.write(table)
    if args.output is not None:
        args.output.write_text(table)


if __name__ == "__main__":
    main()
