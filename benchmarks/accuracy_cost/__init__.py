"""Accuracy beside cost: VoRA, token merge and the encoder-based twin in the small world."""
