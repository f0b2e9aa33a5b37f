"""The seam to paged variable-length attention kernels, and a reference that runs anywhere.

FlashAttention's ``flash_attn_varlen_func`` is the interface; only the arguments that span attention
needs are named here. Everything above this seam runs, and is tested, without a GPU on the
reference.
"""

from importlib import import_module
from typing import Any, Protocol

import torch

from model_plugin.errors import ConfigError


class VarlenAttention(Protocol):
    """Attention of packed queries to paged keys and values, as FlashAttention has it."""

    def __call__(
        self,
        *,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        out: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        max_seqlen_q: int,
        seqused_k: torch.Tensor,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
        block_table: torch.Tensor,
        **options: Any,
    ) -> Any:
        """Compute attention into ``out``.

        Args:
            q: (Q, heads, D), the queries of all sequences, packed.
            k, v: (blocks, block size, kv heads, D), the paged cache.
            out: (Q, heads, D).
            cu_seqlens_q: int32 (S + 1,), offsets of the sequences' queries.
            max_seqlen_q: the longest sequence's queries.
            seqused_k: int32 (S,), keys of each sequence; its last query is aligned with its last
                key.
            max_seqlen_k: the largest of them.
            softmax_scale: factor on the scores.
            causal: whether later keys are hidden; applies to every sequence.
            block_table: int32 (S, blocks per sequence).
            **options: what a kernel knows besides (``fa_version``, descale factors, splits).
        """


def flash_attention() -> VarlenAttention:
    """The kernel of this machine's FlashAttention, whichever version a call names.

    Raises:
        ConfigError: this vLLM has none.
    """
    from vllm.v1.attention.backends import flash_attn

    kernel: VarlenAttention | None = getattr(flash_attn, "flash_attn_varlen_func", None)
    if kernel is None:
        raise ConfigError("This vLLM comes without FlashAttention.")
    return kernel


def flash_attention_versions() -> tuple[int, ...]:
    """Versions of FlashAttention that run on this device.

    For version 4, vLLM only looks for a file; the packages that it is written in may be absent.
    """
    from vllm.v1.attention.backends.fa_utils import is_fa_version_supported

    return tuple(v for v in (2, 3, 4) if is_fa_version_supported(v) and why_unusable(v) is None)


def why_unusable(version: int) -> str | None:
    """Why a version of FlashAttention that vLLM would use cannot be imported; None if it can."""
    if version != 4:
        return None
    try:
        import_module("vllm.vllm_flash_attn.cute.interface")
    except ImportError as error:
        return f"FlashAttention 4 cannot be imported ({error})"
    return None


def reference_attention(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    seqused_k: torch.Tensor,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    block_table: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    """``VarlenAttention`` in plain torch, one sequence at a time, in float32.

    Raises:
        ValueError: lengths exceed the stated maxima, on which real kernels size their work.
    """
    offsets, lengths = cu_seqlens_q.tolist(), seqused_k.tolist()
    block_size, groups = k.shape[1], q.shape[1] // k.shape[2]
    for index, keys in enumerate(lengths):
        first, last = offsets[index], offsets[index + 1]
        queries = last - first
        if queries > max_seqlen_q or keys > max_seqlen_k:
            raise ValueError(f"{queries} queries, {keys} keys: more than the call states.")
        if not queries:
            continue
        blocks = block_table[index, : -(-keys // block_size)].long()
        key, value = (
            cache[blocks].flatten(0, 1)[:keys].float().repeat_interleave(groups, 1)
            for cache in (k, v)
        )
        scores = torch.einsum("qhd,khd->hqk", q[first:last].float(), key) * softmax_scale
        if causal:
            position = torch.arange(keys - queries, keys, device=q.device)
            scores.masked_fill_(
                torch.arange(keys, device=q.device) > position[:, None], float("-inf")
            )
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
        out[first:last] = attended.to(out.dtype)
    return out
