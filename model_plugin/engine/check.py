"""Self-test of span attention on this machine: ``python -m model_plugin.engine.check``.

Correctness of this machine's kernels against dense attention, then timings as a table: causal
attention, span attention, and vLLM's own kernel for such masks where there is one. Ends with exit
code 1 if a kernel is wrong.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from model_plugin.engine.check_batches import Batch, dense_attention, draw_batch, prefill
from model_plugin.engine.compat import mark_cpu_build, require_vllm
from model_plugin.errors import VoRAError

#: (image tokens, text tokens before, text tokens after) of the timed prompts.
SHAPES = ((256, 32, 32), (1024, 32, 32), (4096, 32, 32))
#: Largest absolute difference of an output from dense attention in float32, by dtype; outputs are
#: averages of standard normal values.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the self-test; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m model_plugin.engine.check", description=__doc__
    )
    parser.add_argument("--heads", type=int, default=14, help="query heads [14, of a 0.5B LLM]")
    parser.add_argument("--kv-heads", type=int, default=2, help="key and value heads [2]")
    parser.add_argument("--head-size", type=int, default=64, help="size of a head [64]")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a cache block [32]")
    parser.add_argument("--batches", type=int, default=20, help="random batches to check [20]")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each kernel [15]")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="[best here]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--end-to-end",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="compare vLLM with the Hugging Face side, on random weights or a checkpoint's; always "
        "done on CUDA",
    )
    options = parser.parse_args(arguments)
    try:
        mark_cpu_build()
        version = require_vllm()
        return _run(options, version)
    except VoRAError as error:
        sys.stderr.write(f"check: {error}\n")
        return 2


def _run(options: argparse.Namespace, version: str) -> int:
    from model_plugin.engine.check_kernels import kernels_here

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = getattr(torch, options.dtype or ("bfloat16" if cuda else "float32"))
    _say(f"{_machine(cuda)}; torch {torch.__version__}, vLLM {version}; {str(dtype)[6:]}")
    kernels = kernels_here(device)
    shape = (options.heads, options.kv_heads, options.head_size, options.block_size)
    generator = torch.Generator().manual_seed(options.seed)
    failed = 0
    for name, kernel in kernels.items():
        worst = 0.0
        for _ in range(options.batches):
            batch = draw_batch(generator, *shape, dtype=dtype, device=device)
            worst = max(worst, _difference(batch, kernel(batch, spans=True)()))
        # A kernel that ignored images would pass if the batches had none worth speaking of.
        control = _difference(batch, kernel(batch, spans=False)())
        good = worst <= TOLERANCES[dtype] < control
        failed += not good
        _say(
            f"{'ok    ' if good else 'WRONG '} {name}: off by {worst:.1e} from dense attention "
            f"(causal attention: {control:.1e}; allowed: {TOLERANCES[dtype]:.0e})"
        )
    _say(_table(options, kernels, shape, dtype, device))
    if cuda or options.end_to_end is not None:
        from model_plugin.engine.check_end_to_end import compare

        good, said = compare(options.end_to_end or None, dtype)
        failed += not good
        _say(f"\n{'ok    ' if good else 'WRONG '} end to end: {said}")
    return 1 if failed else 0


def _difference(batch: Batch, output: torch.Tensor) -> float:
    return float((output.float() - dense_attention(batch)).abs().max())


def _table(
    options: argparse.Namespace,
    kernels: dict[str, Any],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    """Timings in milliseconds; kernels take turns, so that what else runs meets all alike."""
    lines = [
        "",
        "| prompt (text + image + text) | kernel | causal ms | spans ms | spans / causal |",
        "|---|---|---|---|---|",
    ]
    generator = torch.Generator().manual_seed(options.seed)
    for image, before, after in SHAPES:
        batch = prefill(generator, image, before, after, *shape, dtype=dtype, device=device)
        runs = {
            (name, spans): kernel(batch, spans=spans)
            for name, kernel in kernels.items()
            for spans in (False, True)
        }
        times: dict[tuple[str, bool], list[float]] = {key: [] for key in runs}
        for turn in range(options.repeats + 2):
            for key, run in runs.items():
                taken = _seconds(run, device)
                if turn >= 2:
                    times[key].append(taken)
        for name in kernels:
            causal, spans = (1e3 * median(times[name, kind]) for kind in (False, True))
            lines.append(
                f"| {before} + {image} + {after} | {name} | {causal:.3f} | {spans:.3f} "
                f"| {spans / causal:.2f} |"
            )
    return "\n".join(lines)


def _seconds(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _machine(cuda: bool) -> str:
    if cuda:
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
