"""The vLLM adaptation: model, multimodal processing, attention per device, scheduler, settings.

vLLM is imported by the modules in here, not by this package itself.
"""

from importlib import import_module
from typing import Any

__all__ = ["VoRAForConditionalGeneration", "explain", "mark_cpu_build", "register", "require_vllm"]

_LAZY = {
    "VoRAForConditionalGeneration": "model_plugin.engine.model",
    "explain": "model_plugin.engine.messages",
    "mark_cpu_build": "model_plugin.engine.compat",
    "register": "model_plugin.engine.registration",
    "require_vllm": "model_plugin.engine.compat",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
