"""The errors of the model side; the tree is :mod:`vora_core.errors`."""

from vora_core.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    PlaceholderError,
    SplitSpanError,
    VoRAError,
)

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ImageError",
    "PlaceholderError",
    "SplitSpanError",
    "VoRAError",
]
