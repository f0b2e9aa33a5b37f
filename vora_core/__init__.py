"""The light core: what every other package may import.

Errors, image geometry and pixels, checkpoint headers, safetensors bytes, typed YAML, supported
versions. Nothing here imports torch, transformers or vLLM, and nothing here imports another package
of this project. It is a package of its own because ``import model_plugin`` has to teach
transformers' Auto classes VoRA, which needs transformers.
"""

__version__ = "0.1.0"
"""Of the whole distribution."""

__all__ = ["__version__"]
