"""What vLLM makes of the settings on a machine that it takes for one with an H100."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model_plugin.conftest import Make
from tests.model_plugin.engine.harness import engine_config


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Make) -> Path:
    return make_checkpoint(resolution="native", preprocessor={"max_pixels": 120 * 14 * 14})


def test_defaults(checkpoint: Path) -> None:
    from vllm.config.compilation import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version

    assert current_platform.is_cuda()
    assert get_flash_attn_version() == 3
    config = engine_config(checkpoint, dtype="bfloat16")
    assert config.attention_config.backend.name == "CUSTOM"
    assert config.use_v2_model_runner
    assert config.cache_config.enable_prefix_caching
    scheduler = config.scheduler_config
    assert scheduler.async_scheduling
    assert scheduler.scheduler_cls == "model_plugin.engine.scheduler.make_scheduler"
    assert scheduler.disable_chunked_mm_input
    assert config.model_config.disable_cascade_attn
    assert config.compilation_config.cudagraph_mode == CUDAGraphMode.FULL_AND_PIECEWISE


def test_the_backend_that_layers_get(checkpoint: Path) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.selector import get_attn_backend

    from model_plugin.engine.attention_cuda import SpanFlashAttentionBackend

    with set_current_vllm_config(engine_config(checkpoint, dtype="bfloat16")):
        chosen = get_attn_backend(128, torch.bfloat16, "auto", use_mm_prefix=True)
    assert chosen is SpanFlashAttentionBackend
    assert chosen.supports_mm_prefix()


def test_graphs(checkpoint: Path) -> None:
    from vllm.v1.attention.backend import AttentionCGSupport

    from model_plugin.engine.attention_cuda import SpanFlashAttentionMetadataBuilder

    config = engine_config(checkpoint, dtype="bfloat16")
    support = SpanFlashAttentionMetadataBuilder.get_cudagraph_support(config, None)
    assert support == AttentionCGSupport.UNIFORM_BATCH


def test_backends_that_would_compute_images_causally(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="FLASHINFER computes images causally"):
        engine_config(checkpoint, dtype="bfloat16", attention_config={"backend": "FLASHINFER"})
    triton = engine_config(
        checkpoint, dtype="bfloat16", attention_config={"backend": "TRITON_ATTN"}
    )
    assert triton.attention_config.backend.name == "TRITON_ATTN"


def test_flash_attention_4_is_tried() -> None:
    """It can be imported here, or is left out with a reason; vLLM only looks for a file."""
    from importlib.util import find_spec

    from model_plugin.engine.kernels import flash_attention_versions, why_unusable

    assert 3 in flash_attention_versions()
    if find_spec("cutlass") is None:
        assert "cannot be imported" in str(why_unusable(4))
