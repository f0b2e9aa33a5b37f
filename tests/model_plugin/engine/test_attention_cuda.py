"""The CUDA backend without a GPU: all of it but the kernels, for which the reference stands in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_plugin.engine.kernels import reference_attention
from model_plugin.engine.segments import image_batch
from model_plugin.errors import SplitSpanError
from model_plugin.spans import Span, block_ids, dense_mask
from tests.model_plugin.conftest import Make, noise_image
from tests.model_plugin.engine.flash_on_cpu import flash_attention_on_cpu
from tests.model_plugin.engine.harness import (
    TOLERANCE,
    Case,
    assert_exact,
    difference,
    generate,
    needs_vllm,
    running_engine,
)
from tests.model_plugin.engine.test_segments import requests
from tests.oracle import Oracle

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]

HEADS, KV_HEADS, SIZE = 4, 2, 8


def paged(
    lengths: list[int], block_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A cache of blocks in random order, its table, and each sequence's keys and values."""
    needed = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(needed) + 2, generator=generator)
    table = torch.zeros(len(lengths), max(needed), dtype=torch.int32)
    shape = (len(order), block_size, KV_HEADS, SIZE)
    k, v = (torch.full(shape, float("nan")) for _ in range(2))
    rows, taken = [], 0
    for index, (length, blocks) in enumerate(zip(lengths, needed, strict=True)):
        table[index, :blocks] = order[taken : taken + blocks]
        taken += blocks
        pair = tuple(torch.randn(length, KV_HEADS, SIZE, generator=generator) for _ in range(2))
        for cache, values in zip((k, v), pair, strict=True):
            for position in range(length):
                block = int(table[index, position // block_size])
                cache[block, position % block_size] = values[position]
        rows.append(pair)
    return k, v, table, rows


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Attention by torch under a mask bool (Q, K)."""
    groups = q.shape[1] // k.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.repeat_interleave(groups, 1).transpose(0, 1)[None],
        v.repeat_interleave(groups, 1).transpose(0, 1)[None],
        attn_mask=mask,
    )
    return out[0].transpose(0, 1)


@settings(max_examples=60)
@given(
    st.lists(requests(), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3, 16]),
    st.integers(0, 2**16),
)
def test_two_launches_are_the_rule(
    batch: list[tuple[int, int, list[Span]]], block_size: int, seed: int
) -> None:
    """Causal over everything, then non-causal over packed image rows: the dense mask's result."""
    from model_plugin.engine.image_rows import attend_images, to_device

    generator = torch.Generator().manual_seed(seed)
    offsets = np.cumsum([0, *(end - start for start, end, _ in batch)]).astype(np.int32)
    lengths = np.array([end for _, end, _ in batch], dtype=np.int32)
    k, v, table, rows = paged(lengths.tolist(), block_size, generator)
    q = torch.randn(int(offsets[-1]), HEADS, SIZE, generator=generator)
    out = torch.full_like(q, float("nan"))
    launch: dict[str, Any] = {"k": k, "v": v, "softmax_scale": SIZE**-0.5}
    reference_attention(
        q=q,
        out=out,
        cu_seqlens_q=torch.from_numpy(offsets),
        max_seqlen_q=int(np.diff(offsets).max()),
        seqused_k=torch.from_numpy(lengths),
        max_seqlen_k=int(lengths.max()),
        causal=True,
        block_table=table,
        **launch,
    )
    images = image_batch(offsets, lengths, {i: row for i, (_, _, row) in enumerate(batch)})
    if images is not None:
        second = to_device(images, table)
        assert isinstance(second.rows, slice) == (images.contiguous is not None)
        attend_images(reference_attention, second, q, k, v, out, softmax_scale=SIZE**-0.5)
    for index, (start, end, row) in enumerate(batch):
        ids = block_ids(end, [span for span in row if span[0] < end])
        mask = dense_mask(ids[start:], ids, offset=start)
        expected = dense_attention(q[offsets[index] : offsets[index + 1]], *rows[index], mask)
        assert torch.allclose(out[offsets[index] : offsets[index + 1]], expected, atol=1e-5)


def test_lone_image_queries_need_no_second_launch() -> None:
    """The last token of an image alone: causal attention shows it the whole image already."""
    assert image_batch(np.array([0, 1, 3]), np.array([9, 4]), {0: [(2, 8)], 1: []}) is None
    assert image_batch(np.array([0, 3]), np.array([9]), {0: [(2, 6)]}) is None


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Make) -> Any:
    return make_checkpoint(
        resolution="native", preprocessor={"max_pixels": 120 * 14 * 14, "min_pixels": 14 * 14}
    )


@pytest.fixture(scope="module")
def running(checkpoint: Any) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    with (
        flash_attention_on_cpu() as launches,
        running_engine(
            checkpoint, max_num_batched_tokens=128, gpu_memory_utilization=0.1
        ) as engine,
    ):
        yield engine, launches


TEXT = "<|im_start|>user\nTell me about the colours."
SMALL, WIDE, TALL = noise_image(70, 56, 1), noise_image(168, 98, 2), noise_image(84, 140, 3)
CASES = [
    Case(TEXT, max_tokens=9),
    Case(f"{TEXT} <image> What is it?", [WIDE]),
    Case("<image><image> See <image>", [TALL, SMALL, WIDE]),
    Case("a b " * 60 + "<image> and so on", [TALL]),
]


@pytest.mark.engine
def test_engine(running: tuple[Any, list[dict[str, Any]]], checkpoint: Any) -> None:
    """The whole engine on this backend: batches, chunks, prefix hits inside an image."""
    engine, launches = running
    oracle = Oracle(checkpoint)
    assert_exact(oracle, CASES, generate(engine, CASES))
    assert {launch["fa_version"] for launch in launches} == {3}
    hit = Case("x = y, so look: <image>?", [WIDE])
    first, again = (generate(engine, [hit], prompt_logprobs=False)[0] for _ in range(2))
    assert 16 < again.num_cached_tokens < len(again.prompt_token_ids) - 2
    assert_exact(oracle, [hit, hit], [first, again])


@pytest.mark.engine
def test_decoding_takes_the_stock_path(running: tuple[Any, list[dict[str, Any]]]) -> None:
    """One launch a layer and step, but for the one step that holds an image."""
    engine, launches = running
    engine.reset_prefix_cache()
    layers = 3
    counts = {}
    for case in (Case("What?", max_tokens=4), Case("What <image>?", [SMALL], max_tokens=4)):
        launches.clear()
        generate(engine, [case], prompt_logprobs=False)
        counts[len(case.images)] = [bool(launch["causal"]) for launch in launches]
    assert counts[0] == [True] * 4 * layers
    assert counts[1] == [True, False] * layers + [True] * 3 * layers


@pytest.mark.engine
def test_one_launch_is_noticed(
    running: tuple[Any, list[dict[str, Any]]], checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without the second launch the answer is a causal model's."""
    from model_plugin.engine.attention_cuda import SpanFlashAttentionImpl

    engine, _ = running
    engine.reset_prefix_cache()
    monkeypatch.setattr(SpanFlashAttentionImpl, "attend_images", lambda *_: None)
    case = Case("Now <image>, then?", [WIDE])
    [output] = generate(engine, [case])
    assert difference(Oracle(checkpoint), case, output) > 100 * TOLERANCE
    assert difference(Oracle(checkpoint, causal=True), case, output) < TOLERANCE


def test_unreported_images_raise(checkpoint: Any) -> None:
    from vllm.v1.attention.backend import CommonAttentionMetadata

    from model_plugin.engine.attention_cuda import SpanFlashAttentionMetadataBuilder

    builder = object.__new__(SpanFlashAttentionMetadataBuilder)
    batch = CommonAttentionMetadata(
        query_start_loc=torch.tensor([0, 4], dtype=torch.int32),
        query_start_loc_cpu=torch.tensor([0, 4], dtype=torch.int32),
        seq_lens=torch.tensor([4], dtype=torch.int32),
        seq_lens_cpu_upper_bound=torch.tensor([4], dtype=torch.int32),
        num_reqs=1,
        num_actual_tokens=4,
        max_query_len=4,
        max_seq_len=4,
        block_table_tensor=torch.tensor([[7]], dtype=torch.int32),
        slot_mapping=torch.arange(4),
    )
    with pytest.raises(SplitSpanError, match="does not report image spans"):
        builder.images(batch)
    batch.mm_req_doc_ranges = {0: [(2, 5)]}
    with pytest.raises(SplitSpanError, match="in one step"):
        builder.images(batch)
    batch.mm_req_doc_ranges = {0: [(1, 2)]}
    images = builder.images(batch)
    assert images.rows == slice(1, 3)
    assert (images.max_query_len, images.max_seq_len) == (2, 3)


@pytest.mark.parametrize(
    ("v2", "support"), [(True, "UNIFORM_BATCH"), (False, "UNIFORM_SINGLE_TOKEN_DECODE")]
)
def test_graphs_of_several_queries_a_request_need_the_second_runner(v2: bool, support: str) -> None:
    """V1 would replay such a graph for a short prompt with an image; V2 keeps prompts out of it."""
    from vllm.v1.attention.backend import AttentionCGSupport

    from model_plugin.engine.attention_cuda import SpanFlashAttentionMetadataBuilder

    settings = SimpleNamespace(use_v2_model_runner=v2)
    given = SpanFlashAttentionMetadataBuilder.get_cudagraph_support(settings, None)
    assert given == AttentionCGSupport[support]


def test_descale_factors_only_with_a_quantized_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_plugin.engine import attention_cuda
    from model_plugin.engine.image_rows import ImageRows

    launches: list[dict[str, Any]] = []
    monkeypatch.setattr(attention_cuda, "flash_attention", lambda: lambda **k: launches.append(k))
    monkeypatch.setattr(
        attention_cuda, "current_platform", SimpleNamespace(fp8_dtype=lambda: torch.float8_e4m3fn)
    )
    layer = SimpleNamespace(_q_scale=torch.ones(1), _k_scale=torch.ones(1), _v_scale=torch.ones(1))
    images = ImageRows(
        slice(0, 2), torch.tensor([0, 2]), torch.tensor([2]), torch.tensor([[0]]), 2, 2
    )
    for dtype in ("auto", "fp8"):
        impl = object.__new__(attention_cuda.SpanFlashAttentionImpl)
        vars(impl).update(
            head_size=SIZE, kv_cache_dtype=dtype, num_kv_heads=KV_HEADS, scale=1.0,
            alibi_slopes=None, logits_soft_cap=0, vllm_flash_attn_version=3,
            batch_invariant_enabled=False, supports_quant_query_input=True,
        )  # fmt: skip
        kind = torch.uint8 if dtype == "fp8" else torch.float32
        cache = torch.zeros(1, KV_HEADS, 16, 2 * SIZE, dtype=kind)
        query = torch.zeros(2, HEADS, SIZE)
        impl.attend_images(layer, query, cache, images, torch.zeros_like(query))
    scales = [{name for name in launch if name.endswith("descale")} for launch in launches]
    assert scales == [set(), {"q_descale", "k_descale", "v_descale"}]


@settings(max_examples=60)
@given(st.lists(requests(), min_size=1, max_size=4), st.integers(0, 2**16))
def test_skipping_image_rows_gives_the_same(
    batch: list[tuple[int, int, list[Span]]], seed: int
) -> None:
    """The first launch leaves image rows out and touches nothing else."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    from model_plugin.engine.image_rows import attend_images, to_device, without_images

    generator = torch.Generator().manual_seed(seed)
    offsets = np.cumsum([0, *(end - start for start, end, _ in batch)]).astype(np.int32)
    lengths = np.array([end for _, end, _ in batch], dtype=np.int32)
    spans = {i: row for i, (_, _, row) in enumerate(batch)}
    k, v, table, rows = paged(lengths.tolist(), 16, generator)
    q = torch.randn(int(offsets[-1]), HEADS, SIZE, generator=generator)
    out = torch.full_like(q, float("nan"))
    step = CommonAttentionMetadata(
        query_start_loc=torch.from_numpy(offsets),
        query_start_loc_cpu=torch.from_numpy(offsets),
        seq_lens=torch.from_numpy(lengths),
        seq_lens_cpu_upper_bound=torch.from_numpy(lengths),
        num_reqs=len(lengths),
        num_actual_tokens=int(offsets[-1]),
        max_query_len=int(np.diff(offsets).max()),
        max_seq_len=int(lengths.max()),
        block_table_tensor=table,
        slot_mapping=torch.arange(int(offsets[-1])),
    )
    first = without_images(step, spans)
    launch: dict[str, Any] = {"k": k, "v": v, "softmax_scale": SIZE**-0.5}
    reference_attention(
        q=q,
        out=out,
        cu_seqlens_q=first.query_start_loc,
        max_seqlen_q=first.max_query_len,
        seqused_k=first.seq_lens,
        max_seqlen_k=first.max_seq_len,
        causal=True,
        block_table=first.block_table_tensor,
        **launch,
    )
    images = image_batch(offsets, lengths, spans)
    if images is not None:
        second = to_device(images, table)
        # Control: what the second launch overwrites is what the first has not computed.
        assert not out[second.rows].any()
        attend_images(reference_attention, second, q, k, v, out, softmax_scale=SIZE**-0.5)
    for index, (start, end, row) in enumerate(batch):
        ids = block_ids(end, [span for span in row if span[0] < end])
        mask = dense_mask(ids[start:], ids, offset=start)
        expected = dense_attention(q[offsets[index] : offsets[index + 1]], *rows[index], mask)
        assert torch.allclose(out[offsets[index] : offsets[index + 1]], expected, atol=1e-5)


@pytest.mark.engine
def test_engine_that_skips_image_rows(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORA_SKIP_IMAGE_ROWS", "1")
    with (
        flash_attention_on_cpu() as launches,
        running_engine(
            checkpoint, max_num_batched_tokens=128, gpu_memory_utilization=0.1
        ) as engine,
    ):
        assert_exact(Oracle(checkpoint), CASES, generate(engine, CASES))
        assert any(0 in launch["seqused_k"].tolist() for launch in launches)


def test_flash_attention_4_must_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM looks for its file only; the packages that it is written in may be absent."""
    from vllm.v1.attention.backends import fa_utils

    from model_plugin.engine import choose_attention
    from model_plugin.engine.kernels import flash_attention_versions, why_unusable

    monkeypatch.setattr(fa_utils, "is_fa_version_supported", lambda _: True, raising=False)
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn.cute.interface", None)
    assert flash_attention_versions() == (2, 3)
    assert "cannot be imported" in str(why_unusable(4))
    monkeypatch.setattr(fa_utils, "get_flash_attn_version", lambda: 4)
    reason = choose_attention.why_not_flash_attention(torch.bfloat16)
    assert reason is not None
    assert "FlashAttention 4" in reason
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn.cute", ModuleType("cute"))
    monkeypatch.setitem(sys.modules, "vllm.vllm_flash_attn.cute.interface", ModuleType("there"))
    assert flash_attention_versions() == (2, 3, 4)
    assert choose_attention.why_not_flash_attention(torch.bfloat16) is None
