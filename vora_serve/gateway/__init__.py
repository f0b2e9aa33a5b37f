"""The OpenAI-compatible gateway: everything that users and images reach.

It imports neither torch, vLLM, transformers nor ``model_plugin``; to engines it speaks OpenAI HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vora_serve.gateway.app import create_app
    from vora_serve.gateway.server import serve
    from vora_serve.gateway.settings import Settings, load_settings

__all__ = ["Settings", "create_app", "load_settings", "serve"]

_HOMES = {
    "Settings": "vora_serve.gateway.settings",
    "create_app": "vora_serve.gateway.app",
    "load_settings": "vora_serve.gateway.settings",
    "serve": "vora_serve.gateway.server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
