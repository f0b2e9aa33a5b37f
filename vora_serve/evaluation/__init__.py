"""Measuring a served model's accuracy over HTTP. Imports neither torch nor the architecture."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vora_serve.accuracy import Row, draw_table, summarise
    from vora_serve.evaluation.client import Endpoint, ask_all

__all__ = ["Endpoint", "Row", "ask_all", "draw_table", "summarise"]

_LAZY = {
    "vora_serve.evaluation.client": ("Endpoint", "ask_all"),
    "vora_serve.accuracy": ("Row", "draw_table", "summarise"),
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used, so that the command line starts quickly."""
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
