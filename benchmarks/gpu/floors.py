"""What the device can do at best: matrix products per second and bytes per second, measured.

The report puts every other measurement beside the time that these rates would take for its
operations and bytes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from benchmarks.gpu.programs import run_all
from benchmarks.gpu.records import Write

#: Matrix products: (rows, inner, columns) as in the layers of a 7B LLM, and a large square.
PRODUCTS = {False: ((8192, 3584, 18944), (8192, 8192, 8192)), True: ((256, 128, 256),)}
#: Bytes that are copied.
COPIED = {False: 4 << 30, True: 16 << 20}
REPEATS = {False: 20, True: 3}


def measure(rehearse: bool, write: Write) -> None:
    """Rates in operations and bytes per second; copying counts reading and writing."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for rows, inner, columns in PRODUCTS[rehearse]:
        left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
        right = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
        operations = 2.0 * rows * inner * columns
        shape = f"{rows} x {inner} x {columns}"
        out = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)
        seconds = _seconds(partial(torch.matmul, left, right.T, out=out), rehearse)
        write({"rate": "bf16", "shape": shape, "per_second": operations / seconds})
        if device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
            seconds = _seconds(_fp8_product(left, right), rehearse)
            write({"rate": "fp8", "shape": shape, "per_second": operations / seconds})
    source = torch.empty(COPIED[rehearse], device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = _seconds(partial(target.copy_, source), rehearse)
    per_second = 2 * COPIED[rehearse] / seconds
    write({"rate": "bytes", "shape": f"{COPIED[rehearse] >> 20} MiB", "per_second": per_second})


def _fp8_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    a, b = (x.to(torch.float8_e4m3fn) for x in (left, right))
    one = torch.ones((), device=left.device)
    return partial(torch._scaled_mm, a, b.T, one, one, out_dtype=torch.bfloat16)


def _seconds(run: Callable[[], object], rehearse: bool) -> float:
    """Median of single runs, after three that are not counted."""
    times = []
    for turn in range(3 + REPEATS[rehearse]):
        if torch.cuda.is_available():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            taken = float(start.elapsed_time(end)) / 1e3
        else:
            begin = time.perf_counter()
            run()
            taken = time.perf_counter() - begin
        if turn >= 3:
            times.append(taken)
    return median(times)


if __name__ == "__main__":
    run_all(measure, "--rehearse" in sys.argv)
