"""Attention kernels: against dense attention, then timed; and the patch embedder.

FlashAttention 3 comes first, since it is what Hopper serves with; the others follow while there is
time. Each kernel's rows are written as soon as it is done.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.programs import one_line, run_all
from benchmarks.gpu.records import Write
from model_plugin.engine import mark_cpu_build

BATCHES, REPEATS = {False: 20, True: 2}, {False: 13, True: 2}
#: (prompts, tokens of each prompt's image) in a rehearsal.
TINY_SHAPES, TINY_HEADS = ((1, 32), (2, 16)), (4, 2, 32, 16)
#: Images of the patch embedder, at 448 px.
EMBEDDED = {False: (1, 16), True: (1,)}


def measure(rehearse: bool, write: Write) -> None:
    """Rows of ``check``, of ``time`` and of ``embedder``."""
    mark_cpu_build()
    from model_plugin.engine.check import HEADS, SHAPES, TOLERANCES
    from model_plugin.engine.check_batches import draw_batch, prefill
    from model_plugin.engine.check_kernels import compare_kernel, kernels_here, time_runs

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    heads = TINY_HEADS if rehearse else HEADS[device.type]
    shapes = TINY_SHAPES if rehearse else SHAPES[device.type]
    generator = torch.Generator().manual_seed(0)
    _embedder(rehearse, device, write)
    kernels = kernels_here(device)
    for name in sorted(kernels, key=_importance):
        kernel = kernels[name]
        try:
            batches = [
                draw_batch(generator, *heads, dtype=dtype, device=device)
                for _ in range(BATCHES[rehearse])
            ]
            good, said = compare_kernel(kernel, batches, TOLERANCES[dtype])
            write({"kind": "check", "kernel": name, "good": good, "said": said})
            for prompts, image in shapes:
                batch = prefill(generator, prompts, image, *heads, dtype=dtype, device=device)
                runs = {spans: kernel(batch, spans=spans) for spans in (False, True)}
                times = time_runs(runs, device, REPEATS[rehearse])
                write(
                    {
                        "kind": "time",
                        "kernel": name,
                        "prompts": prompts,
                        "image": image,
                        "causal_s": median(times[False]),
                        "spans_s": median(times[True]),
                        "flops": _flops(batch, heads),
                    }
                )
        except Exception as error:  # noqa: BLE001 - the other kernels are still to be measured
            write({"kind": "check", "kernel": name, "good": False, "said": one_line(error)})


def _importance(name: str) -> tuple[int, str]:
    order = ("FlashAttention 3", "Triton", "CPU", "FlashAttention 2", "FlashAttention 4")
    found = [place for place, start in enumerate(order) if name.startswith(start)]
    return (found[0] if found else len(order), name)


def _flops(batch: Any, heads: Sequence[int]) -> float:
    """Operations of attention: two products of the head's size for each pair that is visible."""
    pairs = 0.0
    for index, length in enumerate(batch.seq_lens.tolist()):
        pairs += length * (length + 1) / 2
        for first, last in batch.spans[index]:
            image = last - first + 1
            pairs += image * (image - 1) / 2
    return 4.0 * heads[0] * heads[2] * pairs


def _embedder(rehearse: bool, device: torch.device, write: Write) -> None:
    """The patch embedder of a 7B VoRA, with and without token merge."""
    from model_plugin.config import VoRAConfig
    from model_plugin.embedder import VoRAVisionEmbedding
    from model_plugin.engine.check_kernels import time_runs

    side, width, hidden = (8, 96, 64) if rehearse else (32, 1536, 3584)
    runs, flops = {}, {}
    for merge in (1, 2):
        config = VoRAConfig(
            hidden_size=hidden,
            image_size=14 * side,
            vision_embedding_intermediate_size=width,
            spatial_merge_size=merge,
            position_mode="interpolate",
        )
        embedder = VoRAVisionEmbedding(config).to(device, torch.bfloat16).requires_grad_(False)
        for images in EMBEDDED[rehearse]:
            pixels = torch.randn(images * side**2, 3 * 14 * 14, device=device, dtype=torch.bfloat16)
            grids = torch.tensor([[side, side]] * images)
            runs[merge, images] = partial(embedder, pixels, grids)
            flops[merge, images] = 2.0 * images * side**2 * width * (3 * 14 * 14 + hidden)
    times = time_runs(runs, device, REPEATS[rehearse])
    for (merge, images), taken in times.items():
        write(
            {
                "kind": "embedder",
                "merge": merge,
                "images": images,
                "side": 14 * side,
                "seconds": median(taken),
                "flops": flops[merge, images],
            }
        )


if __name__ == "__main__":
    run_all(measure, "--rehearse" in sys.argv)
