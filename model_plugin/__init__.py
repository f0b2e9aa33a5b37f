"""VoRA: a decoder-only LLM plus a patch embedder, and its adaptation to vLLM.

Importing this package makes ``AutoConfig``, ``AutoProcessor`` and ``AutoModelForCausalLM`` know
VoRA checkpoints. ``register`` is the entry point through which vLLM finds the plugin.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from model_plugin.config import VoRAConfig
from model_plugin.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    PlaceholderError,
    SplitSpanError,
    VoRAError,
)
from model_plugin.images import IMAGE_TOKEN, ImageSettings
from vora_core import __version__

if TYPE_CHECKING:
    from model_plugin.model import VoRAForCausalLM
    from model_plugin.processor import VoRAImageProcessor, VoRAProcessor

__all__ = [
    "IMAGE_TOKEN",
    "CheckpointError",
    "ConfigError",
    "ImageError",
    "ImageSettings",
    "PlaceholderError",
    "SplitSpanError",
    "VoRAConfig",
    "VoRAError",
    "VoRAForCausalLM",
    "VoRAImageProcessor",
    "VoRAProcessor",
    "__version__",
    "register",
]

_LAZY = {
    "VoRAForCausalLM": "model_plugin.model",
    "VoRAImageProcessor": "model_plugin.processor",
    "VoRAProcessor": "model_plugin.processor",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Entry point ``vllm.general_plugins``: teach vLLM the architecture. Safe to call again."""
    from model_plugin.engine.registration import register as register_engine

    register_engine()


def _register_with_transformers() -> None:
    from model_plugin.model import VoRAForCausalLM
    from model_plugin.processor import VoRAProcessor

    AutoConfig.register(VoRAConfig.model_type, VoRAConfig, exist_ok=True)
    AutoProcessor.register(VoRAConfig, VoRAProcessor, exist_ok=True)
    AutoModelForCausalLM.register(VoRAConfig, VoRAForCausalLM, exist_ok=True)


_register_with_transformers()
