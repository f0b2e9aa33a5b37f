"""Merged against unmerged: ``python -m benchmarks.adapters``.

A random LLM, in float32 on CPU, is served merged with one vision adapter, as it is with one and
with eight adapters beside it, at several ranks, and as eight merged engines that run at the same
time. Each engine has a process of its own; all but the eight take turns, so that a busy machine
slows all of them. A batch is eight requests with an image each; of the eight engines, each takes
one, on one core, which several of them share.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import packages_distributions, version
from pathlib import Path
from statistics import median
from typing import IO

from benchmarks.adapters.measure import ANSWER, BATCH, answer_orders, measure, times

ROOT = Path(__file__).resolve().parents[2]
MERGED = "merged"
_COLUMNS = (
    ("ttft_ms", "ms"),
    ("ttft_batch_ms", "ms"),
    ("tokens_per_s", ""),
    ("memory_mib", "MiB"),
    ("engine_mib", "MiB"),
)


def in_process(folder: Path, adapters: list[Path], repeats: int) -> dict[str, float]:
    """``measure`` in a process of its own."""
    job = json.dumps([str(folder), [str(path) for path in adapters], repeats])
    done = subprocess.run(
        _command(job), cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class MergedEngines:
    """Eight merged engines at the same time.

    Args:
        folder: of the measurement.
        stack: ends their processes.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self._started = [
            self._start(folder, cores[number % len(cores)], stack) for number in range(BATCH)
        ]
        memory = [tuple(map(float, _answer(each.stdout).split())) for each in self._started]
        self.memory = {
            "memory_mib": sum(whole for whole, _ in memory),
            "engine_mib": sum(whole - libraries for whole, libraries in memory),
        }

    @staticmethod
    def _start(folder: Path, core: int, stack: ExitStack) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            _command(str(folder), "--orders", str(core)),
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        return process

    def seconds(self, count: int, tokens: int) -> float:
        """How long so many of them take for one request each."""
        began = time.perf_counter()
        for each in self._started[:count]:
            assert each.stdin is not None
            each.stdin.write(f"{tokens}\n")
            each.stdin.flush()
        for each in self._started[:count]:
            _answer(each.stdout)
        return time.perf_counter() - began


def _command(job: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.adapters", "--job", job, *flags]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def _answer(lines: IO[str] | None) -> str:
    assert lines is not None
    for line in lines:
        if line.startswith(ANSWER):
            return line.removeprefix(ANSWER)
    raise RuntimeError("an engine has ended; its message is above")


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Medians over turns, a line for each engine; the first one is what others are compared to."""
    lines = [
        "| engine | TTFT, one | TTFT, all of eight | tokens/s, eight | memory | engine's part |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    reference = next(iter(runs.values()))
    for name, turns in runs.items():
        cells = []
        for key, unit in _COLUMNS:
            value = median(turn[key] for turn in turns)
            # Ratios of the same turn: what slowed one slowed the other.
            ratio = median(t[key] / r[key] for t, r in zip(turns, reference, strict=True))
            cells.append(f"{value:,.0f} {unit}".rstrip() + f" ({ratio:.2f}x)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__)
    parser.add_argument("--hidden", type=int, default=512, help="width of the LLM [512]")
    parser.add_argument("--layers", type=int, default=8, help="its depth [8]")
    parser.add_argument("--ranks", default="16,32,64,128,256", help="[16,32,64,128,256]")
    parser.add_argument("--repeats", type=int, default=5, help="measurements in a process [5]")
    parser.add_argument("--turns", type=int, default=3, help="processes of each engine [3]")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--orders", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    if options.orders is not None:
        # A core each, before torch counts them: threads of several engines that wait for one
        # another on the same cores would take almost all of the time.
        os.sched_setaffinity(0, {options.orders})
        answer_orders(Path(options.job))
    elif options.job:
        folder, adapters, repeats = json.loads(options.job)
        found = measure(Path(folder), [Path(path) for path in adapters], repeats)
        sys.stdout.write("\n" + json.dumps(found) + "\n")
    else:
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    ranks = [int(rank) for rank in options.ranks.split(",")]
    runs: dict[str, list[dict[str, float]]] = {}
    load = os.getloadavg()[0]

    def add(engine: str, found: dict[str, float]) -> None:
        runs.setdefault(engine, []).append(found)
        values = ", ".join(f"{key} {value:,.0f}" for key, value in found.items())
        sys.stderr.write(f"{engine}: {values}\n")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, options.hidden, options.layers, ranks)
        for _ in range(options.turns):
            add(MERGED, in_process(folder, [], options.repeats))
            for rank in ranks:
                every = [folder / f"rank-{rank}-{number}" for number in range(BATCH)]
                for count in (1, BATCH):
                    engine = f"rank {rank}, {count} adapter{'s' * (count > 1)}"
                    add(engine, in_process(folder, every[:count], options.repeats))
            with ExitStack() as stack:
                eight = MergedEngines(folder, stack)
                add("eight merged engines", times(eight.seconds, options.repeats) | eight.memory)
    engine = version(packages_distributions()["vllm"][0])
    sys.stdout.write(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load average {load:.1f} at "
        f"the start; Python {platform.python_version()}, torch {version('torch')}, vLLM "
        f"{engine}; width {options.hidden}, {options.layers} layers, float32; medians of "
        f"{options.turns} turns.\n\n{table(runs)}\n"
    )


def _write(folder: Path, hidden: int, layers: int, ranks: list[int]) -> None:
    from benchmarks.adapters.world import merge, write_adapter, write_llm

    model = write_llm(folder, hidden, layers)
    for rank in ranks:
        for number in range(BATCH):
            write_adapter(model, folder / f"rank-{rank}-{number}", rank, seed=number + 1)
    merge(folder, folder / f"rank-{ranks[0]}-0")


if __name__ == "__main__":
    main()
