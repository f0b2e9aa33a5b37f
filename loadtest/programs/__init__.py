"""Programs that run in processes of their own, with the engine's interpreter.

Nothing of ``loadtest`` imports them: they may import vLLM, which the rest of ``loadtest`` may not.
"""
