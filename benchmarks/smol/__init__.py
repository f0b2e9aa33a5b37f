"""VoRA on a real LLM, SmolLM2: one script for minutes of a GPU, and its rehearsal on CPU."""
