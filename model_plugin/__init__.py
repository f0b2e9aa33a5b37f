"""VoRA: a decoder-only LLM plus a patch embedder, and its adaptation to vLLM."""
