"""Batches for the self-test: random requests in a shuffled paged cache, and dense attention."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from vllm.v1.attention.backend import CommonAttentionMetadata

from model_plugin.engine.segments import Int32Array
from model_plugin.spans import Span, block_ids, dense_mask

#: Tokens of text on either side of a timed prompt's image.
TEXT = 32


@dataclass
class Batch:
    """One step of several requests, keys and values of all their tokens in the cache.

    Attributes:
        query: (Q, heads, D), the step's queries, packed.
        cache: (blocks, kv heads, block size, 2 D), keys and values as vLLM stores them on CUDA.
        keys, values: per request, (length, kv heads, D), what the cache holds.
        block_table: int32 (R, blocks per request).
        query_start_loc: int32 (R + 1,), on the host.
        seq_lens: int32 (R,), on the host.
        spans: image spans of each request.
    """

    query: torch.Tensor
    cache: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    block_table: torch.Tensor
    query_start_loc: Int32Array
    seq_lens: Int32Array
    spans: dict[int, list[Span]]

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return 1 / math.sqrt(self.query.shape[-1])

    def step(self) -> CommonAttentionMetadata:
        """The step as vLLM's model runner describes it; image spans are passed beside it."""
        device = self.query.device
        starts, lengths = torch.from_numpy(self.query_start_loc), torch.from_numpy(self.seq_lens)
        return CommonAttentionMetadata(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=lengths.to(device),
            seq_lens_cpu_upper_bound=lengths,
            num_reqs=len(self.seq_lens),
            num_actual_tokens=len(self.query),
            max_query_len=int(np.diff(self.query_start_loc).max()),
            max_seq_len=int(self.seq_lens.max()),
            block_table_tensor=self.block_table,
            slot_mapping=torch.zeros(len(self.query), dtype=torch.int64, device=device),
        )


def make_batch(
    generator: torch.Generator,
    requests: list[tuple[int, int, list[Span]]],
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Batch:
    """A batch of requests given as (first query, length, spans); values standard normal."""
    lengths = [length for _, length, _ in requests]
    blocks = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(blocks) + 3, generator=generator)
    table = torch.zeros(len(requests), max(blocks), dtype=torch.int32)
    cache = torch.zeros(len(order), kv_heads, block_size, 2 * head_size)
    keys, values, taken = [], [], 0
    for index, length in enumerate(lengths):
        rows = order[taken : taken + blocks[index]]
        taken += blocks[index]
        table[index, : len(rows)] = rows
        both = torch.zeros(len(rows) * block_size, kv_heads, 2 * head_size)
        both[:length] = torch.randn(length, kv_heads, 2 * head_size, generator=generator)
        both = both.to(dtype).float()
        cache[rows] = both.view(len(rows), block_size, kv_heads, -1).transpose(1, 2)
        keys.append(both[:length, :, :head_size].to(device))
        values.append(both[:length, :, head_size:].to(device))
    counts = [length - first for first, length, _ in requests]
    query = torch.randn(sum(counts), heads, head_size, generator=generator)
    return Batch(
        query=query.to(device, dtype),
        cache=cache.to(device, dtype),
        keys=keys,
        values=values,
        block_table=table.to(device),
        query_start_loc=np.cumsum([0, *counts]).astype(np.int32),
        seq_lens=np.array(lengths, dtype=np.int32),
        spans={index: spans for index, (_, _, spans) in enumerate(requests)},
    )


def draw_batch(
    generator: torch.Generator,
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Batch:
    """Random requests: fresh prompts, continued ones, prefix hits inside an image, decoding.

    At least one has an image of many tokens to compute.
    """

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    requests: list[tuple[int, int, list[Span]]] = []
    for index in range(number(1, 5)):
        spans, position = [], 0
        for _ in range(number(1 if index == 0 else 0, 3)):
            first = position + number(0, 40)
            position = first + number(60 if index == 0 else 2, 200)
            spans.append((first, position - 1))
        length = position + number(1, 50)
        first = 0 if index == 0 else (0, number(0, length - 1), length - 1)[number(0, 2)]
        requests.append((first, length, spans))
    return make_batch(
        generator, requests, heads, kv_heads, head_size, block_size, dtype=dtype, device=device
    )


def prefill(
    generator: torch.Generator,
    prompts: int,
    image: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Batch:
    """Fresh prompts, each an image of ``image`` tokens between ``TEXT`` and ``TEXT`` of text."""
    request = (0, TEXT + image + TEXT, [(TEXT, TEXT + image - 1)])
    return make_batch(
        generator,
        [request] * prompts,
        heads,
        kv_heads,
        head_size,
        block_size,
        dtype=dtype,
        device=device,
    )


def dense_attention(batch: Batch) -> torch.Tensor:
    """What the attention rule gives: float32 (Q, heads, D), with the mask as a matrix."""
    outputs = []
    groups = batch.query.shape[1] // batch.cache.shape[1]
    for index, length in enumerate(batch.seq_lens.tolist()):
        first, last = batch.query_start_loc[index : index + 2].tolist()
        ids = block_ids(length, batch.spans[index], batch.query.device)
        start = length - (last - first)
        output = functional.scaled_dot_product_attention(
            batch.query[first:last].float().transpose(0, 1)[None],
            batch.keys[index].repeat_interleave(groups, 1).transpose(0, 1)[None],
            batch.values[index].repeat_interleave(groups, 1).transpose(0, 1)[None],
            attn_mask=dense_mask(ids[start:], ids, offset=start),
            scale=batch.scale,
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)
