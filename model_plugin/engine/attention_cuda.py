"""Span-exact attention on CUDA: vLLM's FlashAttention, and one launch more for images.

The stock launch computes the whole step causally; a second, non-causal one over the queries that
lie in images then overwrites their rows. Keys and values of the whole step are in the paged cache
by then. FlashAttention 2, 3 and 4 all do both. Steps without image queries, decoding among them,
are the stock backend's in every respect, full CUDA graphs included.
"""

import os
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
    is_quantized_kv_cache,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheSpec

from model_plugin.engine.image_rows import (
    ImageRows,
    attend_images,
    on_host,
    to_device,
    without_images,
)
from model_plugin.engine.kernels import flash_attention
from model_plugin.engine.segments import image_batch
from model_plugin.engine.spans_of_batch import require_ranges, takes_images

#: Set to 1, the first launch passes over image rows instead of computing them for nothing. Not yet
#: the default: which way is faster is for a measurement on a GPU to say.
SKIP_IMAGE_ROWS = "VORA_SKIP_IMAGE_ROWS"


@dataclass
class SpanFlashAttentionMetadata(FlashAttentionMetadata):
    """vLLM's metadata of a step, and where its images are."""

    images: ImageRows | None = None


class SpanFlashAttentionMetadataBuilder(FlashAttentionMetadataBuilder):
    """Builds the stock metadata, causal throughout, and beside it what the second launch needs."""

    # Another cache group's block table would have to reach the second launch as well.
    supports_update_block_table = False

    @classmethod
    def get_cudagraph_support(
        cls, vllm_config: VllmConfig, kv_cache_spec: KVCacheSpec
    ) -> AttentionCGSupport:
        """Full graphs for decoding; steps that hold images run between piecewise graphs.

        A full graph has no second launch in it. With one query a request none is needed. A graph of
        several queries a request, for speculative decoding, would be wrong for a short prompt with
        an image: Model Runner V2 keeps prompts out of it, V1 does not.
        """
        if vllm_config.use_v2_model_runner:
            return AttentionCGSupport.UNIFORM_BATCH
        return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.takes_images = takes_images(vllm_config.model_config)
        self.skips_image_rows = os.environ.get(SKIP_IMAGE_ROWS) == "1"
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
        images = None
        # Most steps only decode; no query of theirs has keys that causality hides.
        if common_attn_metadata.max_query_len > 1 and self.takes_images and not self.capturing:
            images = self.images(common_attn_metadata)
        # vLLM's own handling of image ranges is not needed: it masks inside FlashAttention 4.
        causal = copy(common_attn_metadata)
        causal.mm_req_doc_ranges = None
        if images is not None and self.skips_image_rows:
            causal = without_images(causal, common_attn_metadata.mm_req_doc_ranges or {})
            # vLLM's buffer for a schedule made ahead has room for requests, not for segments.
            fast_build = True
        stock: FlashAttentionMetadata = super().build(common_prefix_len, causal, fast_build)
        return stock if images is None else SpanFlashAttentionMetadata(**vars(stock), images=images)

    def images(self, batch: CommonAttentionMetadata) -> ImageRows | None:
        """The batch's image rows on the device; None where it has none.

        Raises:
            SplitSpanError: an image is scheduled in part.
        """
        packed = image_batch(*on_host(batch), require_ranges(batch))
        return None if packed is None else to_device(packed, batch.block_table_tensor)


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
            self.attend_images(layer, query, kv_cache, images, output)
        return output

    def attend_images(
        self,
        layer: Any,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        images: ImageRows,
        output: torch.Tensor,
    ) -> None:
        """Overwrite the image rows of ``output`` (tokens, heads, head size) by full attention."""
        key_cache, value_cache = (
            canonicalize_singleton_dim_strides(cache)
            for cache in kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        )
        scales: dict[str, torch.Tensor] = {}
        if is_quantized_kv_cache(self.kv_cache_dtype):
            dtype = current_platform.fp8_dtype()
            key_cache, value_cache = key_cache.view(dtype), value_cache.view(dtype)
            shape = (images.seq_lens.shape[0], self.num_kv_heads)
            scales = {"k_descale": layer._k_scale.expand(shape)}
            scales["v_descale"] = layer._v_scale.expand(shape)
            if self.supports_quant_query_input:
                scales["q_descale"] = layer._q_scale.expand(shape)
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
            num_splits=1 if self.batch_invariant_enabled else 0,
            **scales,
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
