"""How a model sees: attention from its answer to a picture's patches, and likeness to a teacher."""

from vora_serve.explain.look import Explainer, Explanation

__all__ = ["Explainer", "Explanation"]
