"""``python -m benchmarks.gateway.parsing --earlier CHECKOUT``: what reading a request costs.

Validates and encodes text requests as the gateway does, in this checkout and in an earlier one: a
process each, in turn, round by round. CPU time of the process in microseconds per request; the
least of a process's batches, since whatever else the machine does only ever adds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
BATCHES, BATCH = 25, 200


def _chat(turns: int, **more: Any) -> bytes:
    messages = [{"role": "system", "content": "You answer questions about images in one sentence."}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}: what is in the image?"})
        messages.append({"role": "assistant", "content": "A red circle in front of a square."})
    messages.append({"role": "user", "content": "Describe the image in one sentence, please."})
    return json.dumps({"model": "m", "messages": messages, "max_tokens": 20, **more}).encode()


SCENARIOS: dict[str, tuple[str, bytes]] = {
    "chat": ("chat", _chat(0)),
    "chat, sampling": ("chat", _chat(0, temperature=0.7, top_p=0.9, n=1, stop=["\n"], stream=True)),
    "chat, 20 turns": ("chat", _chat(20)),
    "completion": ("completion", b'{"model": "m", "prompt": "Once upon a time", "max_tokens": 20}'),
    "response": ("response", b'{"model": "m", "input": "What is in it?", "store": false}'),
}


def measure() -> dict[str, float]:
    """Microseconds per request by scenario, in this process and with its own checkout."""
    from vora_serve.gateway.schemas import parse_request
    from vora_serve.gateway.settings import FieldSettings

    settings = FieldSettings()
    least: dict[str, float] = {}
    for name, (kind, body) in SCENARIOS.items():
        times = []
        for _ in range(BATCHES):
            began = time.process_time()
            for _ in range(BATCH):
                parse_request(kind, body, settings).encode()  # type: ignore[arg-type]
            times.append((time.process_time() - began) / BATCH * 1e6)
        least[name] = min(times)
    return least


def _in(checkout: Path) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    result = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


def main() -> None:
    """Measure both, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--earlier", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        sys.stdout.write(json.dumps(measure()))
        return
    if given.earlier is None:
        parser.error("--earlier is needed")
    rounds = [(_in(given.earlier.resolve()), _in(HERE)) for _ in range(given.rounds)]
    lines = [
        f"Python {platform.python_version()}, {os.cpu_count()} cores ({platform.machine()}), load "
        f"average {os.getloadavg()[1]:.1f}; {given.rounds} rounds, {BATCHES} batches of {BATCH}.",
        "",
        "| request | earlier, µs | now, µs | added, µs, median of rounds (least to most) |",
        "|---|---|---|---|",
    ]
    for name in SCENARIOS:
        before, now = ([pair[side][name] for pair in rounds] for side in (0, 1))
        added = [b - a for a, b in zip(before, now, strict=True)]
        lines.append(
            f"| {name} | {min(before):.1f} | {min(now):.1f} | "
            f"{statistics.median(added):+.1f} ({min(added):+.1f} to {max(added):+.1f}) |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
