"""This machine's attention kernels, each as a function of a batch of the self-test.

A kernel is prepared once for a batch, with or without its images, and then run: what is timed is
the launches, not the arithmetic of segments on the host (tens of microseconds).
"""

from collections.abc import Callable
from typing import Protocol

import torch

from model_plugin.engine.check_batches import Batch
from model_plugin.engine.kernels import flash_attention
from model_plugin.engine.segments import SegmentBatch, segment_batch

Run = Callable[[], torch.Tensor]


class Kernel(Protocol):
    """Prepares attention of a batch; causal throughout, or with its image spans."""

    def __call__(self, batch: Batch, *, spans: bool) -> Run:
        """A function that computes (Q, heads, D)."""


def kernels_here(device: torch.device) -> dict[str, Kernel]:
    """Kernels that run on a device, by name: this plugin's, then vLLM's own for such masks."""
    if device.type == "cpu":
        return {"CPU, one launch": _cpu}
    from vllm.v1.attention.backends.fa_utils import is_fa_version_supported

    kernels: dict[str, Kernel] = {
        f"FlashAttention {version}, two launches": _flash(version)
        for version in (2, 3, 4)
        if is_fa_version_supported(version)
    }
    return kernels | {"Triton (vLLM's fallback)": _triton}


def _cpu(batch: Batch, *, spans: bool) -> Run:
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
    segments = _segments(batch, spans)
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


def _flash(version: int) -> Kernel:
    def kernel(batch: Batch, *, spans: bool) -> Run:
        """A causal launch over everything, and one more over image rows."""
        from model_plugin.engine.attention_cuda import attend_images, to_device

        device, head_size = batch.query.device, batch.query.shape[-1]
        k, v = batch.cache.transpose(1, 2).split(head_size, dim=-1)
        starts = torch.from_numpy(batch.query_start_loc).to(device)
        lengths = torch.from_numpy(batch.seq_lens).to(device)
        longest = int((batch.query_start_loc[1:] - batch.query_start_loc[:-1]).max())
        segments = _segments(batch, spans)
        packed = segments.images() if segments is not None else None
        images = to_device(packed, batch.block_table) if packed is not None else None
        output, attend = torch.empty_like(batch.query), flash_attention()

        def run() -> torch.Tensor:
            attend(
                q=batch.query,
                k=k,
                v=v,
                out=output,
                cu_seqlens_q=starts,
                max_seqlen_q=longest,
                seqused_k=lengths,
                max_seqlen_k=int(batch.seq_lens.max()),
                softmax_scale=batch.scale,
                causal=True,
                block_table=batch.block_table,
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
    starts = torch.from_numpy(batch.query_start_loc).to(device)
    lengths = torch.from_numpy(batch.seq_lens).to(device)
    longest = int((batch.query_start_loc[1:] - batch.query_start_loc[:-1]).max())
    output = torch.empty_like(batch.query)

    def run() -> torch.Tensor:
        unified_attention(
            q=batch.query,
            k=k,
            v=v,
            out=output,
            cu_seqlens_q=starts,
            max_seqlen_q=longest,
            seqused_k=lengths,
            max_seqlen_k=int(batch.seq_lens.max()),
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


def _segments(batch: Batch, spans: bool) -> SegmentBatch | None:
    return segment_batch(batch.query_start_loc, batch.seq_lens, batch.spans) if spans else None
