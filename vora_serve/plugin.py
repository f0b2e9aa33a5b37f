"""What ``model_plugin`` exports, under a name that a checkout and an installed wheel share.

A wheel calls that package ``vora_model_plugin``, see ``hatch_build.py``. Importing this module
makes transformers' Auto classes know VoRA; ``register`` is the entry point by which vLLM finds the
plugin.
"""

from model_plugin import (
    IMAGE_TOKEN,
    CheckpointError,
    ConfigError,
    ImageError,
    ImageSettings,
    PlaceholderError,
    SplitSpanError,
    VoRAConfig,
    VoRAError,
    VoRAForCausalLM,
    VoRAImageProcessor,
    VoRAProcessor,
    register,
)

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
    "register",
]
