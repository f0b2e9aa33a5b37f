"""One engine in a process of its own: starts, says so, and measures what it is asked for."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.programs import one_line, open_answers
from benchmarks.gpu.records import Row, Write
from benchmarks.gpu.workloads import FULL, TINY, Workload
from loadtest.cost.checkpoint import read_checkpoint


def start(specification: dict[str, Any]) -> Any:
    """vLLM's ``LLM``, in this process."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if specification["stock"]:
        # Chooses vLLM's plugins: none, but what LLaVA lacks on a CPU.
        import loadtest.programs.stock_engine  # noqa: F401
    else:
        from model_plugin.engine import mark_cpu_build

        mark_cpu_build()
    import vllm

    return vllm.LLM(model=specification["checkpoint"], **specification["settings"])


def serve(specification: dict[str, Any], questions: Iterable[str], write: Write) -> None:
    """Start the engine; then answer each line of ``kind`` and ``count``.

    A measurement that fails is answered with the error; the next one is still made.
    """
    begin = time.perf_counter()
    engine = start(specification)
    sizes = TINY if specification["rehearse"] else FULL
    workload = Workload(engine, read_checkpoint(Path(specification["checkpoint"])), sizes)
    for kind, count in (("ttft", 1), ("decode", 2)):
        workload.run(kind, count)  # kernels that compile when they are first used
    write({"kind": "start", "seconds": time.perf_counter() - begin, **_memory()})
    gc.freeze()
    for line in questions:
        question: Row = json.loads(line)
        try:
            write({**question, **workload.run(question["kind"], question["count"])})
        except Exception as error:  # noqa: BLE001 - answered, and the next one is made
            write({**question, "error": one_line(error)})
        if question.get("last"):
            write({"kind": "memory", **_memory()})


def _memory() -> Row:
    """GiB that the process holds on the GPU, and at most held; nothing on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    gib = 2**30
    return {
        "allocated_gib": torch.cuda.memory_allocated() / gib,
        "peak_gib": torch.cuda.max_memory_allocated() / gib,
        "reserved_gib": torch.cuda.memory_reserved() / gib,
    }


def main() -> None:
    """The engine's process."""
    write = open_answers()
    try:
        serve(json.loads(sys.argv[1]), sys.stdin, write)
    except Exception as error:
        write({"kind": "start", "error": one_line(error)})
        raise


if __name__ == "__main__":
    main()
