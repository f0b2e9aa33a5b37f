"""What online requests feel of a batch: the same requests with and without one, in turns.

Against a gateway that runs, with ``batches.folder``::

    python -m benchmarks.gateway.batches --url http://127.0.0.1:8000 --model vora-demo

A round has three parts, in an order that rotates: nothing else; a batch; and, as the control, the
batch's requests as ordinary online ones, as many at a time as the batch may have.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
PARTS = ("alone", "batch", "online flood")


class Gateway:
    """A client of the gateway under test."""

    def __init__(self, url: str, model: str, tokens: int) -> None:
        self.http = httpx.Client(base_url=url, timeout=120, trust_env=False)
        self.model = model
        self.tokens = tokens

    def body(self, text: str) -> dict[str, Any]:
        """A request; no two texts are the same, so that no prefix is cached."""
        message = {"role": "user", "content": text}
        limits = {"max_tokens": self.tokens, "ignore_eos": True}
        return {"model": self.model, "messages": [message], **limits}

    def stream(self, text: str) -> tuple[float, float]:
        """Seconds to a streamed answer's first event, and to its end."""
        began = time.perf_counter()
        first = None
        body = {**self.body(text), "stream": True}
        with self.http.stream("POST", CHAT, json=body) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if first is None and line.startswith("data: "):
                    first = time.perf_counter() - began
        return first or 0.0, time.perf_counter() - began

    @contextmanager
    def batch(self, label: str) -> Iterator[Callable[[], int]]:
        """A batch that runs for as long as the block; how many of its requests are answered."""
        rows = (
            {"custom_id": f"{i}", "method": "POST", "url": CHAT, "body": self.body(f"{label} {i}")}
            for i in range(20_000)
        )
        content = "".join(json.dumps(row) + "\n" for row in rows)
        files = {"file": ("in.jsonl", content)}
        sent = self.http.post("/v1/files", data={"purpose": "batch"}, files=files)
        file = sent.raise_for_status().json()
        ask = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        made = self.http.post("/v1/batches", json=ask).raise_for_status().json()
        path = f"/v1/batches/{made['id']}"

        def done() -> int:
            return int(self.http.get(path).json()["request_counts"]["completed"])

        while self.http.get(path).json()["status"] == "validating":
            time.sleep(0.05)
        try:
            yield done
        finally:
            self.http.post(f"{path}/cancel").raise_for_status()
            while self.http.get(path).json()["status"] != "cancelled":
                time.sleep(0.05)
            self.http.delete(f"/v1/files/{file['id']}").raise_for_status()

    @contextmanager
    def flood(self, label: str, at_a_time: int) -> Iterator[Callable[[], int]]:
        """The same requests online; how many are answered."""
        stop = threading.Event()
        answered: list[int] = []

        def ask(worker: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                text = f"{label} {worker} {number}"
                answered.append(self.http.post(CHAT, json=self.body(text)).status_code)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(at_a_time)]
        for thread in threads:
            thread.start()
        try:
            yield lambda: answered.count(200)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextmanager
def _nothing() -> Iterator[Callable[[], int]]:
    yield lambda: 0


def measure(gateway: Gateway, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Latencies of online requests, and what else was answered, by part."""
    found: dict[str, dict[str, list[float]]] = {part: defaultdict(list) for part in PARTS}
    for turn in range(options.rounds):
        for place in range(len(PARTS)):
            part = PARTS[(turn + place) % len(PARTS)]
            label = f"{turn} {part} {time.time()}"
            context = _nothing()
            if part == "batch":
                context = gateway.batch(label)
            elif part == "online flood":
                context = gateway.flood(label, options.at_a_time)
            with context as others:
                time.sleep(1)  # until it runs
                before, began = others(), time.perf_counter()
                count = 0
                first: list[float] = []
                while time.perf_counter() - began < options.seconds:
                    count += 1
                    to_first, to_end = gateway.stream(f"online {label} {count}")
                    first.append(to_first)
                    found[part]["first"].append(to_first)
                    found[part]["end"].append(to_end)
                    time.sleep(options.pause)
                elapsed = time.perf_counter() - began
                found[part]["others"].append((others() - before) / elapsed)
                found[part]["median"].append(statistics.median(first))
            sys.stderr.write(f"round {turn + 1}, {part}: {count} online requests\n")
    return found


def report(found: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> str:
    """A Markdown table; ratios are those of the same round."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {options.rounds} rounds of "
        f"{options.seconds:g} s a part, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[1]:.1f}, {options.at_a_time} at a time.",
        "",
        "| beside online requests | online requests | first event p50 ms | p95 ms | whole p50 ms | "
        "first event, ratio to alone in the same round: median (least to most) | "
        "other requests/s |",
        "|---|---|---|---|---|---|---|",
    ]
    alone = found["alone"]["median"]
    for part in PARTS:
        values = found[part]
        p95 = statistics.quantiles(values["first"], n=20)[-1]
        ratios = [mine / base for mine, base in zip(values["median"], alone, strict=True)]
        lines.append(
            f"| {part} | {len(values['first'])} | {1000 * statistics.median(values['first']):.1f} "
            f"| {1000 * p95:.1f} | {1000 * statistics.median(values['end']):.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {statistics.mean(values['others']):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--pause", type=float, default=0.1, help="between online requests")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument(
        "--at-a-time", type=int, default=8, help="the control's requests: batches.max_in_flight"
    )
    options = parser.parse_args()
    gateway = Gateway(options.url, options.model, options.tokens)
    sys.stdout.write(report(measure(gateway, options), options))


if __name__ == "__main__":
    main()
