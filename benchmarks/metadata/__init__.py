"""Host time of the CUDA backend's metadata."""
