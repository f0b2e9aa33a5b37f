"""Whether a model fits in a CPU's memory, counted before anything is loaded.

On CUDA vLLM profiles the device itself and says what is missing. On CPU nothing does: a machine
that runs out of memory while it loads ends the process without a word.
"""

import os
from math import prod
from typing import TYPE_CHECKING

import psutil

from model_plugin.checkpoint import expected_shapes
from model_plugin.config import VoRAConfig
from vora_core.errors import ConfigError
from vora_core.units import amount

if TYPE_CHECKING:
    from vllm.config import VllmConfig

#: What a rank's process takes besides weights and KV cache: about 0.8 GB for a tiny model.
PROCESS_BYTES = 1 << 30
#: Any value switches the check off, for machines that know better (memory that can be reclaimed).
SKIP = "VORA_SKIP_MEMORY_CHECK"


def weight_bytes(config: VoRAConfig, bytes_per_parameter: int) -> int:
    """Memory of a merged model's weights."""
    return bytes_per_parameter * sum(prod(shape) for shape in expected_shapes(config).values())


def available_bytes() -> int:
    """Memory that this machine can give without swapping."""
    return int(psutil.virtual_memory().available)


def require_memory(vllm_config: "VllmConfig") -> None:
    """See that weights and KV cache fit in memory, on CPU.

    Quantised weights are left to the user: their size is not what the architecture says.

    Raises:
        ConfigError: they do not.
    """
    import vllm.envs as envs
    from vllm.platforms import current_platform

    model = vllm_config.model_config
    if not current_platform.is_cpu() or os.environ.get(SKIP) or model.quantization is not None:
        return
    weights = weight_bytes(model.hf_config, model.dtype.itemsize)
    ranks = vllm_config.parallel_config.world_size
    given = vllm_config.cache_config.kv_cache_memory_bytes
    cache = ranks * int(given or (envs.VLLM_CPU_KVCACHE_SPACE or 0) * (1 << 30))
    needed, available = weights + cache + ranks * PROCESS_BYTES, available_bytes()
    if needed > available:
        raise ConfigError(
            f"The model needs {amount(needed)} of memory: {amount(weights)} of weights in "
            f"{str(model.dtype).removeprefix('torch.')}, {amount(cache)} of KV cache "
            f"(VLLM_CPU_KVCACHE_SPACE) and {amount(ranks * PROCESS_BYTES)} for its processes; "
            f"{amount(available)} are available. Use a smaller --dtype or a smaller "
            f"VLLM_CPU_KVCACHE_SPACE, or set {SKIP}=1 to try anyway."
        )
