"""Self-test of span attention on this machine: ``python -m model_plugin.engine.check``.

Correctness of this machine's kernels against dense attention, then timings as a table: causal
attention, span attention, and vLLM's own kernel for such masks where there is one. Ends with exit
code 1 if a kernel is wrong.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from model_plugin.engine.compat import mark_cpu_build, require_vllm
from model_plugin.errors import VoRAError

#: (prompts in the step, tokens of each prompt's image) that are timed. With several prompts the
#: image rows are gathered and scattered; with one they lie together.
SHAPES = {
    "cpu": ((1, 256), (1, 1024), (4, 256), (1, 4096)),
    "cuda": ((1, 256), (1, 1024), (7, 1024), (28, 256), (1, 4096), (2, 4096)),
}
#: (query heads, kv heads, head size, tokens of a cache block): of a 0.5B LLM, of a 7B one.
HEADS = {"cpu": (14, 2, 64, 32), "cuda": (28, 4, 128, 16)}
#: Largest absolute difference of an output from dense attention in float32, by dtype; outputs are
#: averages of standard normal values.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the self-test; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m model_plugin.engine.check", description=__doc__
    )
    for position, (name, meaning) in enumerate(
        (
            ("heads", "query heads"),
            ("kv-heads", "key and value heads"),
            ("head-size", "size of a head"),
            ("block-size", "tokens of a cache block"),
        )
    ):
        defaults = f"{HEADS['cpu'][position]} on CPU, {HEADS['cuda'][position]} on CUDA"
        parser.add_argument(f"--{name}", type=int, help=f"{meaning} [{defaults}]")
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
    from model_plugin.engine.check_batches import draw_batch
    from model_plugin.engine.check_kernels import compare_kernel, kernels_here

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = getattr(torch, options.dtype or ("bfloat16" if cuda else "float32"))
    _say(f"{_machine(cuda)}; torch {torch.__version__}, vLLM {version}; {str(dtype)[6:]}")
    kernels = kernels_here(device)
    given = (options.heads, options.kv_heads, options.head_size, options.block_size)
    shape = [x or y for x, y in zip(given, HEADS[device.type], strict=True)]
    generator = torch.Generator().manual_seed(options.seed)
    failed = 0
    for name, kernel in dict(kernels).items():
        batches = [
            draw_batch(generator, *shape, dtype=dtype, device=device)
            for _ in range(options.batches)
        ]
        try:
            good, said = compare_kernel(kernel, batches, TOLERANCES[dtype])
        except Exception as error:  # noqa: BLE001 - the other kernels are still to be checked
            good, said = False, f"does not run: {(str(error) or repr(error)).splitlines()[0]}"
            del kernels[name]
        failed += not good
        _say(f"{'ok    ' if good else 'WRONG '} {name}: {said}")
    _say(_table(options, kernels, shape, dtype, device))
    if cuda or options.end_to_end is not None:
        from model_plugin.engine.check_end_to_end import compare

        # vLLM's default on CUDA: compiled, prompts between piecewise graphs, decoding in full ones.
        for eager in (True, False) if cuda else (True,):
            good, said = compare(options.end_to_end or None, dtype, eager=eager)
            failed += not good
            how = "eager" if eager else "compiled"
            _say(f"\n{'ok    ' if good else 'WRONG '} end to end, {how}: {said}")
    return 1 if failed else 0


def _table(
    options: argparse.Namespace,
    kernels: dict[str, Any],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    """Median milliseconds of each kernel at each shape."""
    from model_plugin.engine.check_batches import TEXT, prefill
    from model_plugin.engine.check_kernels import time_runs

    lines = [
        "",
        f"Heads {shape[0]}/{shape[1]} of {shape[2]}, blocks of {shape[3]}; {TEXT} tokens of text "
        "on either side of each image.",
        "",
        "| prompts x image tokens | kernel | causal ms | spans ms | spans / causal |",
        "|---|---|---|---|---|",
    ]
    generator = torch.Generator().manual_seed(options.seed)
    for prompts, image in SHAPES[device.type]:
        batch = prefill(generator, prompts, image, *shape, dtype=dtype, device=device)
        runs = {
            (name, spans): kernel(batch, spans=spans)
            for name, kernel in kernels.items()
            for spans in (False, True)
        }
        times = time_runs(runs, device, options.repeats)
        for name in kernels:
            causal, spans = (1e3 * median(times[name, kind]) for kind in (False, True))
            lines.append(
                f"| {prompts} x {image} | {name} | {causal:.3f} | {spans:.3f} "
                f"| {spans / causal:.2f} |"
            )
    return "\n".join(lines)


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
