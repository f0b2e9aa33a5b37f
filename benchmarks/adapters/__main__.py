"""Merged against unmerged: ``python -m benchmarks.adapters``.

A random LLM, in float32 on CPU, is served merged with one vision adapter, and as it is with one
and with eight adapters beside it, at several ranks. Each engine has a process of its own; engines
take turns, so that a busy machine slows all of them. A batch is eight requests with an image each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
EIGHT = 8


def in_process(folder: Path, adapters: list[Path], repeats: int) -> dict[str, float]:
    """``measure`` in a process of its own."""
    job = json.dumps([str(folder), [str(path) for path in adapters], repeats])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.adapters", "--job", job],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Medians over turns, a line for each engine; the first one is what others are compared to."""
    lines = [
        "| engine | TTFT, one | TTFT, all of eight | tokens/s, eight | memory |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    reference = next(iter(runs.values()))
    for name, turns in runs.items():
        cells = []
        for key, unit in (
            ("ttft_ms", "ms"),
            ("ttft_batch_ms", "ms"),
            ("tokens_per_s", ""),
            ("memory_mib", "MiB"),
        ):
            value = median(turn[key] for turn in turns)
            # Ratios of the same turn: what slowed one slowed the other.
            ratio = median(t[key] / r[key] for t, r in zip(turns, reference, strict=True))
            cells.append(f"{value:,.0f} {unit} ({ratio:.2f}x)")
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
    options = parser.parse_args()
    os.environ |= {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    if options.job:
        from benchmarks.adapters.measure import measure

        folder, adapters, repeats = json.loads(options.job)
        found = measure(Path(folder), [Path(path) for path in adapters], repeats)
        sys.stdout.write("\n" + json.dumps(found) + "\n")
        return
    ranks = [int(rank) for rank in options.ranks.split(",")]
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, options.hidden, options.layers, ranks)
        for _ in range(options.turns):
            runs.setdefault("merged", []).append(in_process(folder, [], options.repeats))
            for rank in ranks:
                every = [folder / f"rank-{rank}-{number}" for number in range(EIGHT)]
                for count in (1, EIGHT):
                    engine = f"rank {rank}, {count} adapter{'s' * (count > 1)}"
                    found = in_process(folder, every[:count], options.repeats)
                    runs.setdefault(engine, []).append(found)
    sys.stdout.write(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load average "
        f"{os.getloadavg()[0]:.1f} at the end; Python {platform.python_version()}; width "
        f"{options.hidden}, {options.layers} layers, float32; medians of {options.turns} turns.\n\n"
        f"{table(runs)}\n\nEight merged engines take eight times the memory of one.\n"
    )


def _write(folder: Path, hidden: int, layers: int, ranks: list[int]) -> None:
    from benchmarks.adapters.world import merge, write_adapter, write_llm

    model = write_llm(folder, hidden, layers)
    for rank in ranks:
        for number in range(EIGHT):
            write_adapter(model, folder / f"rank-{rank}-{number}", rank, seed=number + 1)
    merge(folder, folder / f"rank-{ranks[0]}-0")


if __name__ == "__main__":
    main()
