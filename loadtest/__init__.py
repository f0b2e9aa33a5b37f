"""Drives load over HTTP, pairs VoRA with an encoder-based baseline, and draws the report."""
