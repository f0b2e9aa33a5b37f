"""Which attention backend runs image spans on CUDA.

``CUSTOM`` is this plugin's: FlashAttention (3 on Hopper, 2 or 4 elsewhere or where
``--attention-config.flash_attn_version`` says so) with a second launch for images. vLLM's own
backends for such masks stay selectable by ``--attention-backend``.
"""

from typing import TYPE_CHECKING

import torch
from vllm.logger import init_logger

from model_plugin.engine.kernels import why_unusable
from model_plugin.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)

#: vLLM's own backends that honour image spans, by the name that ``--attention-backend`` takes.
#: ``FLASH_ATTN`` among them needs FlashAttention 4, which vLLM checks.
FALLBACKS = (
    "TRITON_ATTN",
    "FLEX_ATTENTION",
    "FLASH_ATTN",
    "TRITON_FLASH_ATTN",
    "TRITON_FLASHINFER",
)


def choose_attention(vllm_config: "VllmConfig") -> None:
    """Choose this plugin's backend on CUDA unless the user chose one.

    Elsewhere there is nothing to choose. Where FlashAttention does not do (float32, or a vLLM built
    without it), vLLM chooses among its own backends for image spans.

    Raises:
        ConfigError: the chosen backend would compute images causally.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    if not current_platform.is_cuda():
        return
    attention = vllm_config.attention_config
    chosen = [attention.backend, *attention.backend_per_kind.values()]
    for backend in chosen:
        if backend is not None and backend.name not in ("CUSTOM", *FALLBACKS):
            raise ConfigError(
                f"--attention-backend {backend.name} computes images causally; leave it out, or "
                f"use one of {', '.join(FALLBACKS)}."
            )
    if any(backend is not None for backend in chosen):
        return
    reason = why_not_flash_attention(vllm_config.model_config.dtype)
    if reason is None:
        attention.backend = AttentionBackendEnum.CUSTOM
    else:
        logger.warning("FlashAttention is not used for images: %s. vLLM chooses a backend.", reason)


def why_not_flash_attention(dtype: torch.dtype) -> str | None:
    """Why this plugin's CUDA backend cannot run here; None if it can."""
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version

    if dtype not in (torch.float16, torch.bfloat16):
        return f"it does not compute in {str(dtype).removeprefix('torch.')}"
    version = get_flash_attn_version()
    if version is None:
        return "this device or this build of vLLM has none"
    return why_unusable(version)
