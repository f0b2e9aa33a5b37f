"""Engine settings that VoRA needs: applied where they are defaults, refused where they conflict."""

import os
from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from model_plugin.config import VoRAConfig
from model_plugin.engine.adapters.settings import HOST_MODE, limits_of
from model_plugin.engine.choose_attention import choose_attention
from model_plugin.engine.compat import make_llvmlite_readable
from model_plugin.engine.memory import require_memory
from model_plugin.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = init_logger(__name__)

#: Tokenizer and renderer mode: an ordinary tokenizer, chat rendering that keeps text text.
TOKENIZER_MODE = "vora"
SCHEDULER = "model_plugin.engine.scheduler.make_scheduler"
#: Speculative decoding that needs no second model: a draft model would see no images.
SPECULATIVE_METHODS = ("ngram", "ngram_gpu")


class VoRAEngineConfig(VerifyAndUpdateConfig):
    """vLLM's hook for the architecture; runs once in the process that parses the settings."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        """Settings of the model, before the engine's are known.

        Raises:
            ConfigError: a setting cannot work with this architecture.
        """
        from vllm.tokenizers.registry import cached_tokenizer_from_config

        from model_plugin.processor import image_token_id

        config = _vora_config(model_config)
        host = limits_of(config) is not None
        if model_config.tokenizer_mode not in ("auto", "hf", TOKENIZER_MODE, HOST_MODE):
            raise ConfigError(
                f"--tokenizer-mode {model_config.tokenizer_mode} does not work with VoRA; leave it "
                "out."
            )
        # Chat through this renderer only: it keeps what users write from becoming control tokens.
        model_config.tokenizer_mode = HOST_MODE if host else TOKENIZER_MODE
        if model_config.skip_tokenizer_init:
            raise ConfigError("--skip-tokenizer-init does not work with VoRA; leave it out.")
        if model_config.enable_prompt_embeds:
            raise ConfigError("--enable-prompt-embeds does not work with VoRA; leave it out.")
        multimodal = model_config.multimodal_config
        if multimodal is not None:
            if multimodal.enable_mm_embeds:
                raise ConfigError("--enable-mm-embeds does not work with VoRA; leave it out.")
            # Pillow's own conversion to RGB, as the released pipeline has it; vLLM's would paint
            # a white background under transparency.
            multimodal.media_io_kwargs.setdefault("image", {}).setdefault("image_mode", None)
        if config.is_mm_prefix_lm and getattr(config, "sliding_window", None) is not None:
            raise ConfigError(
                "The checkpoint uses a sliding window, which cuts image spans; set "
                "use_sliding_window to false in its config.json."
            )
        if config.image_token_id is None:
            config.image_token_id = image_token_id(cached_tokenizer_from_config(model_config))
        # Cascade attention would treat a shared image as a causal prefix.
        model_config.disable_cascade_attn = True
        if not host:  # where the LLM's own text is answered as vLLM does
            _keep_greedy_defaults(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        """Settings of the engine.

        Raises:
            ConfigError: a setting cannot work with image spans; names the flag to change.
        """
        make_llvmlite_readable()
        model_config = vllm_config.model_config
        _vora_config(model_config)
        _refuse_eager_pipelines_on_cpu(vllm_config)
        require_memory(vllm_config)
        _refuse_priorities(vllm_config)
        if not model_config.is_mm_prefix_lm:
            return
        _refuse_what_cuts_spans(vllm_config)
        _keep_spans_on_later_stages(vllm_config)
        choose_attention(vllm_config)
        scheduler = vllm_config.scheduler_config
        if scheduler.scheduler_cls not in (None, SCHEDULER):
            raise ConfigError(
                "--scheduler-cls cannot be chosen with VoRA, whose own scheduler keeps images "
                "whole; leave it out."
            )
        scheduler.scheduler_cls = SCHEDULER
        scheduler.disable_chunked_mm_input = True
        if scheduler.long_prefill_token_threshold:
            logger.warning(
                "--long-prefill-token-threshold is ignored: a chunk smaller than an image would "
                "never be scheduled."
            )
            scheduler.long_prefill_token_threshold = 0
        _make_room_for_an_image(vllm_config)


def _vora_config(model_config: "ModelConfig") -> VoRAConfig:
    config = model_config.hf_config
    if not isinstance(config, VoRAConfig):
        raise ConfigError(
            f"{model_config.model} names the architecture VoRAForCausalLM, but its config.json has "
            f'the model_type {config.model_type!r} where "vora" is expected.'
        )
    return config


def _keep_greedy_defaults(model_config: "ModelConfig") -> None:
    """Requests that say nothing get greedy answers where the checkpoint asks for them.

    vLLM reads sampling defaults from generation_config.json, but not ``do_sample``: without a
    temperature beside it, a checkpoint that decodes greedily would be sampled from.
    """
    if model_config.generation_config == "vllm":
        return
    defaults = model_config.try_get_generation_config()
    if defaults.get("do_sample") is False and defaults.get("temperature") is None:
        model_config.override_generation_config.setdefault("temperature", 0.0)


def _refuse_eager_pipelines_on_cpu(vllm_config: "VllmConfig") -> None:
    """vLLM's CPU worker sets up what pipeline stages exchange only while it compiles."""
    from vllm.platforms import current_platform

    eager = vllm_config.model_config.enforce_eager or vllm_config.lora_config is not None
    if (
        current_platform.is_cpu()
        and vllm_config.parallel_config.pipeline_parallel_size > 1
        and eager
    ):
        raise ConfigError(
            "Pipeline parallelism on CPU needs compilation; leave out --enforce-eager and "
            "--enable-lora, or --pipeline-parallel-size."
        )


def _refuse_priorities(vllm_config: "VllmConfig") -> None:
    """vLLM forgets to embed an image of a request that it preempts in the step that scheduled it.

    The request comes back, its image counts as embedded, and the engine ends. Only the order by
    priority preempts a request that the step has scheduled already.
    """
    multimodal = vllm_config.model_config.multimodal_config
    if multimodal is None or multimodal.get_limit_per_prompt("image") == 0:
        return
    if vllm_config.scheduler_config.policy == "priority":
        raise ConfigError(
            "--scheduling-policy priority ends the engine where memory for images' requests runs "
            "short; leave it out."
        )


def _refuse_what_cuts_spans(vllm_config: "VllmConfig") -> None:
    parallel = vllm_config.parallel_config
    speculative = vllm_config.speculative_config
    if parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
        raise ConfigError(
            "Context parallelism splits images across devices; leave out "
            "--prefill-context-parallel-size and --decode-context-parallel-size."
        )
    if parallel.use_ubatching:
        raise ConfigError(
            "Microbatching splits images across batches; leave out --enable-dbo and --ubatch-size."
        )
    if speculative is not None and speculative.method not in SPECULATIVE_METHODS:
        raise ConfigError(
            f"Speculative decoding by {speculative.method!r} does not work with VoRA; use "
            f"{' or '.join(SPECULATIVE_METHODS)} in --speculative-config."
        )


def _keep_spans_on_later_stages(vllm_config: "VllmConfig") -> None:
    """Model Runner V2 knows of images on the first pipeline stage only; V1 on all of them."""
    if vllm_config.parallel_config.pipeline_parallel_size == 1:
        return
    if not vllm_config.use_v2_model_runner:
        return
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER"):
        raise ConfigError(
            "Model Runner V2 does not tell later pipeline stages where images are; leave out "
            "VLLM_USE_V2_MODEL_RUNNER=1 or --pipeline-parallel-size."
        )
    logger.info("Using Model Runner V1, which gives every pipeline stage the images' positions.")
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"


def _make_room_for_an_image(vllm_config: "VllmConfig") -> None:
    """See that a step holds the largest image beside every running request.

    Running requests are scheduled first; with less room, an image could wait behind them forever.
    """
    from vllm.multimodal import MULTIMODAL_REGISTRY

    model_config, scheduler = vllm_config.model_config, vllm_config.scheduler_config
    info = MULTIMODAL_REGISTRY.get_processing_info(model_config)
    limits = info.get_mm_max_tokens_per_item(model_config.max_model_len, {"image": 1})
    largest = limits["image"]
    running = scheduler.max_num_seqs * (1 + vllm_config.num_speculative_tokens)
    required = largest + running
    explanation = (
        f"an image of up to {largest} tokens and {running} tokens of running requests "
        f"(--max-num-seqs {scheduler.max_num_seqs}) must fit in one step"
    )
    if scheduler.max_num_scheduled_tokens and scheduler.max_num_scheduled_tokens < required:
        raise ConfigError(
            f"--max-num-scheduled-tokens {scheduler.max_num_scheduled_tokens} is too small: "
            f"{explanation}; set it to at least {required}, or lower --max-num-seqs or max_pixels "
            "in --mm-processor-kwargs."
        )
    budget = scheduler.max_num_batched_tokens
    if budget >= required:
        return
    if budget not in _default_budgets(vllm_config, largest):
        raise ConfigError(
            f"--max-num-batched-tokens {budget} is too small: {explanation}; set it to at least "
            f"{required}, or lower --max-num-seqs or max_pixels in --mm-processor-kwargs."
        )
    logger.info("Raising max_num_batched_tokens from %d to %d: %s.", budget, required, explanation)
    scheduler.max_num_batched_tokens = required
    scheduler.max_num_encoder_input_tokens = required
    scheduler.encoder_cache_size = required


def _default_budgets(vllm_config: "VllmConfig", largest: int) -> set[int]:
    """Values of ``max_num_batched_tokens`` that vLLM may have chosen itself.

    By the time the hook runs, vLLM no longer says whether the user gave the flag.
    """
    from vllm.engine.arg_utils import EngineArgs

    parallel = vllm_config.parallel_config
    world = parallel.pipeline_parallel_size * parallel.tensor_parallel_size
    batched, _ = EngineArgs.get_batch_defaults(world)
    scheduler = vllm_config.scheduler_config
    chosen = {*batched.values(), scheduler.DEFAULT_MAX_NUM_BATCHED_TOKENS, largest}
    # Throughput mode doubles the default; a short context caps it.
    chosen |= {2 * value for value in chosen}
    return chosen | {scheduler.max_num_seqs * vllm_config.model_config.max_model_len}
