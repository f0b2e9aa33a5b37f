"""vora-serve: train, merge, export and serve VoRA models."""

from vora_core import __version__

__all__ = ["__version__"]
