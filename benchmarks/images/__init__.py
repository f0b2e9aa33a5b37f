"""How fast pictures become a model's input, beside transformers' CLIP image processor."""
