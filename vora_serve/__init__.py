"""vora-serve: train, merge, export and serve VoRA models."""
