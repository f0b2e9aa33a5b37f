"""What an image in a prompt costs beside as many text tokens."""
