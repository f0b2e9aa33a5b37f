"""Span-exact attention on CUDA: vLLM's FlashAttention, and one launch more for images.

The stock launch computes the whole step causally; a second, non-causal one over the queries that
lie in images then overwrites their rows. Keys and values of the whole step are in the paged cache
by then. FlashAttention 2, 3 and 4 all do both. Steps without image queries, decoding among them,
are the stock backend's in every respect, full CUDA graphs included.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.torch_utils import (
    PIN_MEMORY,
    canonicalize_singleton_dim_strides,
    is_quantized_kv_cache,
)
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheSpec

from model_plugin.engine.kernels import VarlenAttention, flash_attention
from model_plugin.engine.segments import ImageBatch, segment_batch
from model_plugin.engine.spans_of_batch import require_ranges, takes_images
from model_plugin.errors import SplitSpanError


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


@dataclass
class SpanFlashAttentionMetadata(FlashAttentionMetadata):
    """vLLM's metadata of a step, and where its images are."""

    images: ImageRows | None = None


class SpanFlashAttentionMetadataBuilder(FlashAttentionMetadataBuilder):
    """Builds the stock metadata, causal throughout, and beside it what the second launch needs."""

    # A full graph of more than one query a request could be replayed for a short prompt with an
    # image, and the second launch would not be in it. With one query a request there is nothing to
    # add: the last token that is computed of an image sees the same keys either way.
    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    # Another cache group's block table would have to reach the second launch as well.
    supports_update_block_table = False

    @classmethod
    def get_cudagraph_support(
        cls, vllm_config: VllmConfig, kv_cache_spec: KVCacheSpec
    ) -> AttentionCGSupport:
        """Full graphs for decoding; what holds images runs between piecewise graphs."""
        return cls._cudagraph_support

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.takes_images = takes_images(vllm_config.model_config)
        self.capturing = False

    def build_for_cudagraph_capture(
        self, common_attn_metadata: CommonAttentionMetadata
    ) -> FlashAttentionMetadata:
        """Metadata of a captured step: decoding, so without images."""
        self.capturing = True
        try:
            return super().build_for_cudagraph_capture(common_attn_metadata)
        finally:
            self.capturing = False

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> FlashAttentionMetadata:
        """Metadata of one step.

        Raises:
            SplitSpanError: an image is scheduled in part, or the runner does not say where images
                are.
        """
        stock: FlashAttentionMetadata = super().build(
            common_prefix_len, replace(common_attn_metadata, mm_req_doc_ranges=None), fast_build
        )
        if not self.takes_images or self.capturing:
            return stock
        images = self._images(common_attn_metadata)
        return SpanFlashAttentionMetadata(**vars(stock), images=images)

    def _images(self, batch: CommonAttentionMetadata) -> ImageRows | None:
        spans = require_ranges(batch)
        lengths = batch.seq_lens_cpu_upper_bound
        if lengths is None:
            raise SplitSpanError("The model runner does not report the lengths of sequences.")
        requests = batch.num_reqs
        # The bound is exact wherever a prompt is computed; decoding lies behind every image.
        segments = segment_batch(
            batch.query_start_loc_cpu[: requests + 1].numpy(), lengths[:requests].numpy(), spans
        )
        packed = segments.images() if segments is not None else None
        return None if packed is None else to_device(packed, batch.block_table_tensor)


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


class SpanFlashAttentionImpl(FlashAttentionImpl):
    """vLLM's FlashAttention, then image queries once more over the whole of their image."""

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: FlashAttentionMetadata,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in vLLM.

        Args:
            layer: the attention layer, which holds the scales of a quantised cache.
            query: (tokens, heads, D).
            key, value: (tokens, kv heads, D); in the cache already.
            kv_cache: (blocks, kv heads, block size, 2 D).
            attn_metadata: of this step; None while profiling.
            output: (tokens, heads, D), written.
            output_scale, output_block_scale: not supported, as in vLLM.
        """
        output = super().forward(
            layer,
            query,
            key,
            value,
            kv_cache,
            attn_metadata,
            output,
            output_scale,
            output_block_scale,
        )
        images: ImageRows | None = getattr(attn_metadata, "images", None)
        if images is not None:
            self._attend_images(layer, query, kv_cache, images, output)
        return output

    def _attend_images(
        self,
        layer: Any,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        images: ImageRows,
        output: torch.Tensor,
    ) -> None:
        key_cache, value_cache = (
            canonicalize_singleton_dim_strides(cache)
            for cache in kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        )
        if is_quantized_kv_cache(self.kv_cache_dtype):
            dtype = current_platform.fp8_dtype()
            key_cache, value_cache = key_cache.view(dtype), value_cache.view(dtype)
        scales = (images.seq_lens.shape[0], self.num_kv_heads)
        attend_images(
            flash_attention(),
            images,
            query,
            key_cache,
            value_cache,
            output,
            softmax_scale=self.scale,
            alibi_slopes=self.alibi_slopes,
            softcap=self.logits_soft_cap,
            fa_version=self.vllm_flash_attn_version,
            q_descale=layer._q_scale.expand(scales) if self.supports_quant_query_input else None,
            k_descale=layer._k_scale.expand(scales),
            v_descale=layer._v_scale.expand(scales),
            num_splits=1 if self.batch_invariant_enabled else 0,
        )


class SpanFlashAttentionBackend(FlashAttentionBackend):
    """vLLM's FlashAttention backend, except that image tokens see the whole of their image."""

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """Whether image spans are honoured; vLLM and the start-up assertion read it."""
        return True

    @classmethod
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: Any,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: Any,
    ) -> str | None:
        """Why the backend cannot run so, or None: images add no condition to causal attention."""
        reason: str | None = super().supports_combination(
            head_size,
            dtype,
            kv_cache_dtype,
            block_size,
            use_mla,
            has_sink,
            use_sparse,
            False,
            device_capability,
        )
        return reason

    @staticmethod
    def get_impl_cls() -> type[SpanFlashAttentionImpl]:
        """The implementation with the second launch."""
        return SpanFlashAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[SpanFlashAttentionMetadataBuilder]:
        """The builder that says where images are."""
        return SpanFlashAttentionMetadataBuilder
