"""What the playground computes an image's tokens from, where the checkpoint is on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from vora_core.checkpoint import MODEL_TYPE, CheckpointHeader, find_local
from vora_core.errors import VoRAError
from vora_core.geometry import ImageSettings


def describe_model(
    name: str,
    cards: Mapping[str, Mapping[str, Any]],
    checkpoints: Mapping[str, str],
    settings: ImageSettings | None,
) -> dict[str, Any] | None:
    """How a served model's images become tokens, as :func:`describe_checkpoint` has it.

    Args:
        name: the model's, or a vision adapter's.
        cards: the engines' cards of all models, by name.
        checkpoints: models' locations that are set by hand.
        settings: the image settings that its engines announce.
    """
    parent = cards[name].get("parent")
    llm = parent if isinstance(parent, str) and parent in cards else None
    root = checkpoints.get(llm or name) or cards[llm or name].get("root")
    if not isinstance(root, str):
        return None
    if llm is not None and settings is not None:
        return describe_adapter(settings, root)
    return describe_checkpoint(root)


@lru_cache(maxsize=64)
def describe_adapter(settings: ImageSettings, llm: str) -> dict[str, Any] | None:
    """The same for a vision adapter, by what its engine says of its images.

    Args:
        settings: the adapter's image settings.
        llm: where the LLM is: a folder, or a hub id whose files are in the local cache.
    """
    folder = find_local(llm)
    if folder is None:
        return None
    try:
        kv = CheckpointHeader.open(folder).kv_bytes_per_token()
    except VoRAError:
        return None
    return {"image": settings.geometry(), "kv_bytes_per_token": kv}


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
