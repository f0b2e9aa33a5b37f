"""Teaching vLLM the architecture: what the ``vllm.general_plugins`` entry point does.

vLLM calls it in every process that it starts. Each hook takes a name, not a class, so that nothing
is imported before it is used.
"""

from model_plugin.engine.compat import mark_cpu_build, require_vllm

ARCHITECTURE = "VoRAForCausalLM"

_registered = False


def register() -> None:
    """Register model, configuration hook, attention and chat rendering. Safe to call again.

    Raises:
        ConfigError: the installed vLLM is not of a release that the plugin knows.
    """
    global _registered
    if _registered:
        return
    mark_cpu_build()
    require_vllm()

    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from model_plugin.engine.adapters.settings import HOST_ARCHITECTURE, HOST_MODE
    from model_plugin.engine.config_hook import TOKENIZER_MODE, VoRAEngineConfig

    ModelRegistry.register_model(
        ARCHITECTURE, "model_plugin.engine.model:VoRAForConditionalGeneration"
    )
    ModelRegistry.register_model(
        HOST_ARCHITECTURE, "model_plugin.engine.adapters.model:VoRAHostForConditionalGeneration"
    )
    MODELS_CONFIG_MAP[ARCHITECTURE] = MODELS_CONFIG_MAP[HOST_ARCHITECTURE] = VoRAEngineConfig
    # Other models keep the stock behaviour: the backend looks at the model that it serves.
    register_backend(
        AttentionBackendEnum.CPU_ATTN,
        "model_plugin.engine.attention_cpu.SpanCPUAttentionBackend",
    )
    # On CUDA a backend of its own, which the configuration hook chooses: vLLM's stay selectable.
    register_backend(
        AttentionBackendEnum.CUSTOM,
        "model_plugin.engine.attention_cuda.SpanFlashAttentionBackend",
    )
    for mode in (TOKENIZER_MODE, HOST_MODE):
        TokenizerRegistry.register(mode, "vllm.tokenizers.hf", "CachedHfTokenizer")
    RENDERER_REGISTRY.register(TOKENIZER_MODE, "model_plugin.engine.renderer", "VoRARenderer")
    RENDERER_REGISTRY.register(HOST_MODE, "model_plugin.engine.adapters.renderer", "HostRenderer")
    _group_lora_on_cpu()
    _take_ready_images()
    _keep_processed_images_in_front()
    _end_soon()
    _registered = True


def _end_soon() -> None:
    """Let processes that vLLM spawns end without a last search for garbage.

    Each otherwise looks through some million objects when its interpreter ends, one process after
    the other, after vLLM has released what it holds. The system takes memory back at exit anyway.
    """
    import atexit
    import gc
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        atexit.register(gc.freeze)


def _group_lora_on_cpu() -> None:
    """Compute LoRA on CPU adapter by adapter, which leaves tokens without one alone."""
    from vllm.platforms.cpu import CpuPlatform

    def wrapper(_: type[CpuPlatform]) -> str:
        return "model_plugin.engine.lora_cpu.GroupedLoRA"

    CpuPlatform.get_punica_wrapper = classmethod(wrapper)


def _take_ready_images() -> None:
    """Load images through the plugin's connector, unless another was asked for."""
    import os

    from model_plugin.engine.ready_images import CONNECTOR

    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", CONNECTOR)


def _keep_processed_images_in_front() -> None:
    from model_plugin.engine.processed_images import keep_processed_images_in_front

    keep_processed_images_in_front()
