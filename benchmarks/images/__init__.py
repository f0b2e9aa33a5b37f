"""How fast images become a model's input, beside transformers' CLIP image processor."""
