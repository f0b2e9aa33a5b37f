"""How a model sees: attention from its answer to an image's patches, and likeness to a teacher."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vora_serve.explain.look import Explainer, Explanation

__all__ = ["Explainer", "Explanation"]


def __getattr__(name: str) -> Any:
    """Import the model's side only when it is used: ``--help`` must not wait for torch."""
    if name in __all__:
        from vora_serve.explain import look

        return getattr(look, name)
    raise AttributeError(name)
