"""Turning an LLM's checkpoint into a base that VoRA is trained on: ``vora-serve base import``."""
