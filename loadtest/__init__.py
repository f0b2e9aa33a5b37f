"""Drives load over HTTP, pairs VoRA with an encoder-based baseline, and draws the report."""

from vora_core import __version__

__all__ = ["__version__"]
