"""The CUDA backend on a machine without a GPU: its kernels replaced by the reference.

Everything but the two kernels (attention, writing the cache) is the real thing: vLLM's
FlashAttention backend, this plugin's on top of it, and the engine around them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from model_plugin import register
from model_plugin.engine.kernels import reference_attention


def write_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *_: Any,
) -> None:
    """What ``reshape_and_cache_flash`` does: (blocks, block size, kv heads, D) by slot."""
    count = slot_mapping.shape[0]
    block, offset = slot_mapping // key_cache.shape[1], slot_mapping % key_cache.shape[1]
    key_cache[block, offset] = key[:count]
    value_cache[block, offset] = value[:count]


@contextmanager
def flash_attention_on_cpu(version: int = 3) -> Iterator[list[dict[str, Any]]]:
    """Let engines on CPU use the CUDA backend; gives the arguments of every launch."""
    from vllm.v1.attention import selector
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    # Or the engine's own start would put the CPU backend back.
    register()
    launches: list[dict[str, Any]] = []

    def launch(**arguments: Any) -> torch.Tensor:
        launches.append(arguments)
        return reference_attention(**arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash_attn, "get_flash_attn_version", lambda *_, **__: version)
        patch.setattr(flash_attn, "flash_attn_varlen_func", launch, raising=False)
        patch.setattr(flash_attn, "reshape_and_cache_flash", write_cache, raising=False)
        patch.setattr(flash_attn, "get_scheduler_metadata", lambda **_: None, raising=False)
        stock = AttentionBackendEnum.CPU_ATTN.get_path()
        custom = "model_plugin.engine.attention_cuda.SpanFlashAttentionBackend"
        register_backend(AttentionBackendEnum.CPU_ATTN, custom)
        selector._cached_get_attn_backend.cache_clear()
        try:
            yield launches
        finally:
            register_backend(AttentionBackendEnum.CPU_ATTN, stock)
            selector._cached_get_attn_backend.cache_clear()
