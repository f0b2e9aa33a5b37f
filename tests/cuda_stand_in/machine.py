"""Fakes for what only a device can do, put in place before vLLM is imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

#: Kept alive: a library's operators go with it.
_LIBRARIES: list[torch.library.Library] = []


@dataclass(frozen=True)
class Launch:
    """What a launch of FlashAttention 3 was asked for."""

    causal: bool
    sequences: int
    queries: int
    planned: bool


#: Launches since the last ``recorded_launches`` began.
_LAUNCHES: list[Launch] = []


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """FlashAttention's launches in the block, in order."""
    _LAUNCHES.clear()
    yield _LAUNCHES


def install() -> None:
    """Make CPU tensors do where vLLM for CUDA expects a device's.

    vLLM's own placeholders for streams and events are those of its CPU worker.
    """
    from vllm.platforms import current_platform
    from vllm.utils import platform_utils

    platform = type(current_platform)
    # Before vLLM registers its own operators, which are then the CPU's.
    platform.dispatch_key = "CPU"
    platform.is_pin_memory_available = classmethod(lambda cls: False)
    platform.get_current_memory_usage = classmethod(lambda cls, device=None: 0)
    platform_utils.is_uva_available = lambda: True
    torch.accelerator.current_device_index = lambda: 0

    import vllm.v1.worker.cpu.shm  # noqa: F401
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend

    # The fake kernel computes in float32, so engines can be compared with the oracle exactly.
    FlashAttentionBackend.supported_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    _replace_kernels()


def _replace_kernels() -> None:
    import vllm._custom_ops  # noqa: F401
    from vllm.vllm_flash_attn import flash_attn_interface

    from tests.model_plugin.engine.flash_on_cpu import write_cache

    assert flash_attn_interface.FA3_AVAILABLE, flash_attn_interface.FA3_UNAVAILABLE_REASON
    attention = torch.library.Library("_vllm_fa3_C", "IMPL")
    attention.impl("fwd", _fake_attention, "CPU")
    attention.impl("get_scheduler_metadata", _fake_plan, "CPU")
    cache = torch.library.Library("_C_cache_ops", "IMPL")
    cache.impl("reshape_and_cache_flash", write_cache, "CPU")
    quantisation = torch.library.Library("_C", "IMPL")
    quantisation.impl("static_scaled_fp8_quant", _fake_quantisation, "CPU")
    _LIBRARIES.extend((attention, cache, quantisation))


def _fake_attention(*arguments: Any) -> list[torch.Tensor]:
    """FlashAttention 3's forward operator: the reference, after the checks that the kernel makes.

    The arguments are those of ``hopper/flash_api.cpp``; the ones that this plugin's launches do not
    use must be absent.
    """
    from model_plugin.engine.kernels import reference_attention

    q, k, v, k_new, v_new, q_v, out = arguments[:7]
    starts, _, starts_new, _, lengths, longest, furthest, table = arguments[7:15]
    q_scale, k_scale, v_scale, softmax_scale, causal = arguments[20:25]
    plan = arguments[29]
    assert k_new is v_new is q_v is starts_new is None
    sequences = starts.shape[0] - 1
    assert all(x.dtype == torch.int32 for x in (starts, lengths, table))
    assert all(x.device == q.device for x in (starts, lengths, table))
    assert table.shape[0] == sequences, (table.shape, sequences)
    assert lengths.shape == (sequences,), (lengths.shape, sequences)
    assert all(x.stride(-1) == 1 for x in (q, k, v, table, out))
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    assert bool((starts.diff() >= 0).all()), "offsets of queries decrease"
    assert int(starts[-1]) <= q.shape[0], (starts, q.shape)
    for scale in (q_scale, k_scale, v_scale):
        assert scale is None or scale.shape == (sequences, k.shape[2])
    if plan is not None:
        assert plan.dtype == torch.int32
        assert plan.is_contiguous()
    _LAUNCHES.append(Launch(causal, sequences, q.shape[0], plan is not None))
    reference_attention(
        q=q,
        k=k,
        v=v,
        out=out,
        cu_seqlens_q=starts,
        max_seqlen_q=longest,
        seqused_k=lengths,
        max_seqlen_k=furthest,
        softmax_scale=softmax_scale,
        causal=causal,
        block_table=table,
    )
    nothing = torch.empty(0)
    return [out, nothing, nothing, nothing]


def _fake_plan(sequences: int, *_: Any) -> torch.Tensor:
    """FlashAttention 3's plan of a launch, of the size that vLLM keeps a buffer for."""
    return torch.zeros(1 + -(-sequences // 4) * 4 * 4, dtype=torch.int32)


def _fake_quantisation(
    output: torch.Tensor, weights: torch.Tensor, scale: torch.Tensor, *_: Any
) -> None:
    """vLLM's quantisation to FP8 by a scale that is given."""
    largest = torch.finfo(output.dtype).max
    output.copy_((weights.float() / scale).clamp(-largest, largest))
