"""What the playground computes an image's tokens from, where the checkpoint is on this machine."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vora_core.checkpoint import MODEL_TYPE, CheckpointHeader, find_local
from vora_core.errors import VoRAError


@lru_cache(maxsize=64)
def describe_checkpoint(location: str) -> dict[str, Any] | None:
    """``{"image": {...}, "kv_bytes_per_token": n}``, or None where the files are out of reach.

    Args:
        location: a folder, or a hub id whose files are in the local cache.
    """
    folder = find_local(location)
    if folder is None:
        return None
    try:
        header = CheckpointHeader.open(folder)
        if header.model_type != MODEL_TYPE:
            return None
        return {
            "image": header.image_settings.geometry(),
            "kv_bytes_per_token": header.kv_bytes_per_token(),
        }
    except VoRAError:
        return None
