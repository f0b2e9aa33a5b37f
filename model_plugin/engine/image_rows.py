"""The image queries of a step as a launch of their own, on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import PIN_MEMORY
from vllm.v1.attention.backend import CommonAttentionMetadata

from model_plugin.engine.kernels import VarlenAttention
from model_plugin.engine.segments import ImageBatch, Int32Array, segment_batch
from model_plugin.errors import SplitSpanError
from model_plugin.spans import Span


@dataclass
class ImageRows:
    """The second launch, on the device.

    Attributes:
        rows: int64 (Q,), rows of the queries that lie in images; or a slice where they lie
            together, which saves packing them.
        query_start_loc: int32 (S + 1,).
        seq_lens: int32 (S,).
        block_table: int32 (S, blocks per sequence).
        max_query_len: longest segment, in queries.
        max_seq_len: longest sequence of keys.
    """

    rows: torch.Tensor | slice
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    max_query_len: int
    max_seq_len: int


def to_device(images: ImageBatch, block_table: torch.Tensor) -> ImageRows:
    """The second launch's tensors where the block table lies, in one copy.

    Args:
        images: the packed image queries of a step.
        block_table: int32 (requests, blocks per sequence), of the whole batch.
    """
    together = images.contiguous
    parts = [images.query_start_loc, images.seq_lens, images.request]
    if together is None:
        parts.append(images.rows)
    host = torch.from_numpy(np.concatenate(parts))
    if PIN_MEMORY and block_table.is_cuda:
        host = host.pin_memory()
    device = host.to(block_table.device, non_blocking=True).split([len(part) for part in parts])
    return ImageRows(
        rows=slice(*together) if together else device[3].long(),
        query_start_loc=device[0],
        seq_lens=device[1],
        block_table=block_table.index_select(0, device[2]),
        max_query_len=images.max_query_len,
        max_seq_len=images.max_seq_len,
    )


def attend_images(
    kernel: VarlenAttention,
    images: ImageRows,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    output: torch.Tensor,
    **options: Any,
) -> None:
    """The second launch: rows of ``output`` that belong to images are computed anew.

    Args:
        kernel: what computes attention.
        images: where the images are.
        query: (tokens, heads, D), of the whole step.
        key_cache, value_cache: (blocks, block size, kv heads, D).
        output: (tokens, heads, D).
        **options: further arguments of the kernel.
    """
    rows = images.rows
    packed = query[rows]
    out = output[rows] if isinstance(rows, slice) else torch.empty_like(output[: len(packed)])
    kernel(
        q=packed,
        k=key_cache,
        v=value_cache,
        out=out,
        cu_seqlens_q=images.query_start_loc,
        max_seqlen_q=images.max_query_len,
        seqused_k=images.seq_lens,
        max_seqlen_k=images.max_seq_len,
        causal=False,
        block_table=images.block_table,
        **options,
    )
    if isinstance(rows, torch.Tensor):
        output.index_copy_(0, rows, out)


def without_images(
    batch: CommonAttentionMetadata, spans: Mapping[int, Sequence[Span]]
) -> CommonAttentionMetadata:
    """A batch whose image segments see no keys, so that the first launch passes over their rows.

    Args:
        batch: the step.
        spans: inclusive image spans of each request, by its index in the batch.
    """
    offsets, lengths = on_host(batch)
    segments = segment_batch(offsets, lengths, spans)
    if segments is None:
        return batch
    device = batch.block_table_tensor.device
    starts = torch.from_numpy(segments.query_start_loc)
    wanted = segments.seq_lens * segments.causal
    # Zero for requests that are not cut: the device alone knows how long those are that decode
    # speculatively and asynchronously.
    change = torch.from_numpy(wanted - lengths[segments.request])
    request = torch.from_numpy(segments.request).to(device)
    changes: dict[str, Any] = {
        "query_start_loc": starts.to(device),
        "query_start_loc_cpu": starts,
        "seq_lens": batch.seq_lens.index_select(0, request) + change.to(device),
        "seq_lens_cpu_upper_bound": torch.from_numpy(wanted),
        "num_reqs": len(segments.request),
        # Kernels size their grid by the longest segment, whether it has keys or not.
        "max_query_len": segments.max_query_len,
        "block_table_tensor": batch.block_table_tensor.index_select(0, request),
    }
    return replace(batch, **changes)


def on_host(batch: CommonAttentionMetadata) -> tuple[Int32Array, Int32Array]:
    """Query offsets int32 (R + 1,) and lengths int32 (R,) of a step.

    The upper bound of a length is exact wherever a prompt is computed, and decoding lies behind
    every image.

    Raises:
        SplitSpanError: the model runner does not report lengths.
    """
    lengths = batch.seq_lens_cpu_upper_bound
    if lengths is None:
        raise SplitSpanError("The model runner does not report the lengths of sequences.")
    requests = batch.num_reqs
    return batch.query_start_loc_cpu[: requests + 1].numpy(), lengths[:requests].numpy()
