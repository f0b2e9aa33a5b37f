"""This machine's attention kernels, each as a function of a batch of the self-test.

A kernel is prepared once for a batch, with or without its images, and then run: what is timed is
the launches, not the arithmetic of segments on the host (tens of microseconds).
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from model_plugin.engine.check_batches import Batch, dense_attention
from model_plugin.engine.kernels import flash_attention, flash_attention_versions
from model_plugin.engine.segments import image_batch, segment_batch

#: Launches in one CUDA graph that is timed.
LAUNCHES = 10

Key = TypeVar("Key", bound=Hashable)
Run = Callable[[], torch.Tensor]


class Kernel(Protocol):
    """Prepares attention of a batch; causal throughout, or with its image spans."""

    def __call__(self, batch: Batch, *, spans: bool) -> Run:
        """A function that computes (Q, heads, D)."""


def kernels_here(device: torch.device) -> dict[str, Kernel]:
    """Kernels that run on a device, by name: this plugin's, then vLLM's own for such masks."""
    if device.type == "cpu":
        return {"CPU, one launch": cpu}
    kernels: dict[str, Kernel] = {}
    for version in flash_attention_versions():
        kernels[f"FlashAttention {version}, two launches"] = flash(version)
        kernels[f"FlashAttention {version}, image rows skipped"] = flash(version, skip=True)
    return kernels | {"Triton (vLLM's fallback)": _triton}


def cpu(batch: Batch, *, spans: bool) -> Run:
    """vLLM's CPU kernel over the batch cut at its images."""
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    heads, head_size = batch.query.shape[1:]
    blocks, kv_heads, block_size, _ = batch.cache.shape
    isa = _get_attn_isa(batch.query.dtype, block_size, head_size, "auto")
    keys, values = batch.cache.split(head_size, dim=-1)
    # The kernel stores a block's keys in an order of its own.
    cache = torch.zeros(blocks, kv_heads, 2 * block_size, head_size, dtype=batch.query.dtype)
    key_cache, value_cache = cache.chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(
        keys.transpose(1, 2).reshape(-1, kv_heads, head_size).contiguous(),
        values.transpose(1, 2).reshape(-1, kv_heads, head_size).contiguous(),
        key_cache,
        value_cache,
        torch.arange(blocks * block_size),
        isa,
    )
    segments = segment_batch(batch.query_start_loc, batch.seq_lens, batch.spans) if spans else None
    if segments is None:
        starts, lengths = torch.from_numpy(batch.query_start_loc), torch.from_numpy(batch.seq_lens)
        table, causal = batch.block_table, None
    else:
        starts = torch.from_numpy(segments.query_start_loc)
        lengths = torch.from_numpy(segments.seq_lens)
        table = batch.block_table.index_select(0, torch.from_numpy(segments.request))
        causal = torch.from_numpy(segments.causal)
    output = torch.empty_like(batch.query)
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(lengths),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_size,
        seq_lens=lengths,
        dtype=batch.query.dtype,
        query_start_loc=starts,
        causal=causal is None,
        sliding_window_size=-1,
        isa=isa,
        enable_kv_split=True,
        dynamic_causal=causal,
    )

    def run() -> torch.Tensor:
        ops.cpu_attention_with_kv_cache(
            query=batch.query,
            key_cache=key_cache,
            value_cache=value_cache,
            output=output,
            query_start_loc=starts,
            seq_lens=lengths,
            scale=batch.scale,
            causal=causal is None,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=table,
            softcap=0,
            scheduler_metadata=plan,
            s_aux=None,
            dynamic_causal=causal,
        )
        return output

    return run


def flash(version: int, *, skip: bool = False) -> Kernel:
    """FlashAttention of a version in two launches; the first may skip image rows."""

    def kernel(batch: Batch, *, spans: bool) -> Run:
        """A causal launch, over everything or past image rows, and one more over image rows."""
        from model_plugin.engine.image_rows import attend_images, to_device, without_images

        head_size = batch.query.shape[-1]
        k, v = batch.cache.transpose(1, 2).split(head_size, dim=-1)
        step = batch.step()
        packed = image_batch(batch.query_start_loc, batch.seq_lens, batch.spans) if spans else None
        images = to_device(packed, batch.block_table) if packed is not None else None
        if images is not None and skip:
            step = without_images(step, batch.spans)
        output, attend = torch.empty_like(batch.query), flash_attention()

        def run() -> torch.Tensor:
            attend(
                q=batch.query,
                k=k,
                v=v,
                out=output,
                cu_seqlens_q=step.query_start_loc,
                max_seqlen_q=step.max_query_len,
                seqused_k=step.seq_lens,
                max_seqlen_k=step.max_seq_len,
                softmax_scale=batch.scale,
                causal=True,
                block_table=step.block_table_tensor,
                fa_version=version,
            )
            if images is not None:
                attend_images(
                    attend,
                    images,
                    batch.query,
                    k,
                    v,
                    output,
                    softmax_scale=batch.scale,
                    fa_version=version,
                )
            return output

        return run

    return kernel


def _triton(batch: Batch, *, spans: bool) -> Run:
    """The kernel of vLLM's TRITON_ATTN, with its table of image ranges."""
    from vllm.v1.attention.backends.utils import compute_mm_prefix_range_tensor
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention

    device, head_size = batch.query.device, batch.query.shape[-1]
    k, v = batch.cache.transpose(1, 2).split(head_size, dim=-1)
    ranges = (
        compute_mm_prefix_range_tensor(batch.spans, len(batch.seq_lens), device) if spans else None
    )
    step, output = batch.step(), torch.empty_like(batch.query)

    def run() -> torch.Tensor:
        unified_attention(
            q=batch.query,
            k=k,
            v=v,
            out=output,
            cu_seqlens_q=step.query_start_loc,
            max_seqlen_q=step.max_query_len,
            seqused_k=step.seq_lens,
            max_seqlen_k=step.max_seq_len,
            softmax_scale=batch.scale,
            causal=True,
            window_size=(-1, -1),
            block_table=batch.block_table,
            softcap=0,
            q_descale=None,
            k_descale=None,
            v_descale=None,
            mm_prefix_range=ranges,
        )
        return output

    return run


def compare_kernel(kernel: Kernel, batches: Sequence[Batch], tolerance: float) -> tuple[bool, str]:
    """Whether a kernel gives dense attention on every batch, and a sentence with the numbers."""
    worst = max(_difference(batch, kernel(batch, spans=True)()) for batch in batches)
    # A kernel that ignores images would pass if the batches contained hardly any.
    control = _difference(batches[-1], kernel(batches[-1], spans=False)())
    return worst <= tolerance < control, (
        f"off by {worst:.1e} from dense attention (causal attention: {control:.1e}; allowed: "
        f"{tolerance:.0e})"
    )


def _difference(batch: Batch, output: torch.Tensor) -> float:
    difference = float((output.float() - dense_attention(batch)).abs().max())
    return math.inf if math.isnan(difference) else difference


def time_runs(
    runs: Mapping[Key, Run], device: torch.device, repeats: int
) -> dict[Key, list[float]]:
    """Seconds of each run, ``repeats`` times, after two that are not counted.

    The runs take turns, so that whatever else the machine does affects all of them. On CUDA a CUDA
    graph of several launches is replayed: timing a single launch would time the launching.
    """
    timers = {key: _timer(run, device) for key, run in runs.items()}
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for turn in range(repeats + 2):
        for key, timer in timers.items():
            taken = timer()
            if turn >= 2:
                times[key].append(taken)
    return times


def _timer(run: Run, device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return lambda: _wall_seconds(run)
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            run()

    def replay() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / LAUNCHES

    return replay


def _wall_seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
