"""Checkpoints with random weights: VoRA, and encoder-based twins with the same LLM."""

from loadtest.checkpoints.llava import build_llava
from loadtest.checkpoints.qwen_vl import build_qwen2_5_vl
from loadtest.checkpoints.tokenizer import WORDS
from loadtest.checkpoints.vora import build_vora

__all__ = ["WORDS", "build_llava", "build_qwen2_5_vl", "build_vora"]
