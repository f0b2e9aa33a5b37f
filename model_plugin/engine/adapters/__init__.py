"""One LLM, many vision adapters: vLLM's run-time LoRA beside an embedder for each adapter.

The *host* is the LLM that everything runs on: a plain checkpoint, served as vLLM serves it. Each
adapter is a model name of its own. vLLM is imported by the modules in here, not by this package.
"""
