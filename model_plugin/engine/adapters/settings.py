"""What an engine with vision adapters has room for, and the host's configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig

from model_plugin.config import VoRAConfig
from vora_core.layout import SUPPORTED_LLMS

#: What vLLM knows the host's model class by.
HOST_ARCHITECTURE = "VoRAHostForCausalLM"
#: Tokenizer and renderer mode of the host.
HOST_MODE = "vora-host"
#: The engine's modules that adapters change; the token embedding and the output stay untouched.
TARGET_MODULES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class HostLimits:
    """What is set aside when an engine starts, for adapters that are there or will be loaded.

    Attributes:
        adapters: most adapters at a time; each has a place in every batch.
        rank: largest rank, one of ``vora_core.adapter.KERNEL_RANKS``.
        image_tokens: most tokens of one image.
    """

    adapters: int
    rank: int
    image_tokens: int


def host_config(limits: HostLimits, config: PreTrainedConfig) -> PreTrainedConfig:
    """An LLM's configuration as the host's; vLLM calls this as ``hf_overrides``.

    Args:
        limits: kept in the configuration, which reaches every process of the engine.
        config: the LLM's. vLLM also asks with a dummy, which comes back as it is.
    """
    if config.model_type not in SUPPORTED_LLMS:
        return config
    host = VoRAConfig.from_llm_config(config)
    host.architectures = [HOST_ARCHITECTURE]
    host.vision_host = asdict(limits)
    return host


def limits_of(config: Any) -> HostLimits | None:
    """The limits in a configuration; None where no adapters are served."""
    found = getattr(config, "vision_host", None)
    return HostLimits(**found) if found is not None else None
