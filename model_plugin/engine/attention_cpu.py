"""Span-exact attention on CPU: vLLM's own backend over a batch cut at its images."""

from dataclasses import replace
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from model_plugin.engine.segments import segment_batch
from model_plugin.engine.spans_of_batch import require_ranges, takes_images


class SpanCPUAttentionMetadataBuilder(CPUAttentionMetadataBuilder):
    """Builds the stock metadata; a batch with image queries is cut into segments first.

    The kernel runs once over all segments, each with a causality of its own. Keys and values of
    the whole step are in the paged cache by then, so an image's queries find all of its keys.
    Models other than a bidirectional VoRA, and batches without image queries, take the stock path.
    """

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.takes_images = takes_images(vllm_config.model_config)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> CPUAttentionMetadata:
        """Metadata of one step.

        Raises:
            SplitSpanError: an image is scheduled in part, or the runner does not say where images
                are.
        """
        if self.takes_images:
            common_attn_metadata = self.cut(common_attn_metadata)
        return super().build(common_prefix_len, common_attn_metadata, fast_build)

    def cut(self, batch: CommonAttentionMetadata) -> CommonAttentionMetadata:
        """The batch with requests cut at their images; the batch itself where it has none.

        Raises:
            SplitSpanError: an image is scheduled in part.
        """
        requests = batch.num_reqs
        segments = segment_batch(
            batch.query_start_loc_cpu[: requests + 1].numpy(),
            batch.seq_lens[:requests].numpy(),
            require_ranges(batch),
        )
        if segments is None:
            return batch
        rows = torch.from_numpy(segments.request)
        changes: dict[str, Any] = {
            "query_start_loc": torch.from_numpy(segments.query_start_loc),
            "query_start_loc_cpu": torch.from_numpy(segments.query_start_loc),
            "seq_lens": torch.from_numpy(segments.seq_lens),
            "num_reqs": len(rows),
            "max_query_len": segments.max_query_len,
            "max_seq_len": segments.max_seq_len,
            "block_table_tensor": batch.block_table_tensor.index_select(0, rows),
            "causal": torch.from_numpy(segments.causal),
        }
        return replace(batch, **changes)


class SpanCPUAttentionBackend(CPUAttentionBackend):
    """vLLM's CPU backend, except that image tokens see the whole of their image."""

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """Whether image spans are honoured; read by the start-up assertion."""
        return True

    @staticmethod
    def get_builder_cls() -> type[SpanCPUAttentionMetadataBuilder]:
        """The builder that cuts batches."""
        return SpanCPUAttentionMetadataBuilder
