"""The page at ``/``: talk to the served models, and see what an image becomes and costs."""

from vora_serve.gateway.playground.explain import explain_command
from vora_serve.gateway.playground.geometry import describe_model
from vora_serve.gateway.playground.routes import add_playground, public_paths

__all__ = ["add_playground", "describe_model", "explain_command", "public_paths"]
