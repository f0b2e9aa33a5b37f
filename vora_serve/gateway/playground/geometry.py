"""What a checkpoint's JSON files say of its pictures: enough to tell tokens without the model.

The gateway must not import the model's side, so the few numbers are read plainly; the playground
computes sizes from them, and a test holds its arithmetic against the model's own.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

_NATIVE_MIN = 56 * 56
_NATIVE_MAX = 14 * 14 * 50 * 80
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def find_checkpoint(root: str) -> Path | None:
    """The folder of a checkpoint that an engine names: a local one, or a hub id in the cache."""
    path = Path(root)
    if path.is_absolute():
        return path if (path / "config.json").is_file() else None
    if root.count("/") != 1 or ".." in root:
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    folder = cache / f"models--{root.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / revision
    return snapshot if (snapshot / "config.json").is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _positive(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def _side(size: Any) -> int | None:
    if isinstance(size, int) and size > 0:
        return size
    if isinstance(size, dict):
        for key in ("shortest_edge", "height", "width"):
            if isinstance(size.get(key), int) and size[key] > 0:
                return int(size[key])
    return None


def image_settings(config: dict[str, Any], processor: dict[str, Any]) -> dict[str, Any]:
    """Geometry of pictures, from the contents of the two files; keys as in the latter."""
    patch = _positive(config.get("patch_size"), 14)
    result: dict[str, Any] = {
        "resolution": "native" if processor.get("resolution") == "native" else "fixed",
        "patch_size": patch,
        "merge_size": _positive(config.get("spatial_merge_size"), 1),
    }
    if result["resolution"] == "native":
        result["min_pixels"] = _positive(processor.get("min_pixels"), _NATIVE_MIN)
        result["max_pixels"] = _positive(processor.get("max_pixels"), _NATIVE_MAX)
    else:
        edge = _side(processor.get("size"))
        crop = _side(processor.get("crop_size"))
        if processor.get("do_center_crop") is False:
            crop = edge
        result["image_size"] = crop or edge or 448
        result["resize_edge"] = edge or result["image_size"]
    return result


def kv_bytes_per_token(config: dict[str, Any]) -> int | None:
    """Bytes that one token takes in the KV cache, in the dtype of the weights."""
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    if not all(isinstance(value, int) and value > 0 for value in (layers, heads, hidden)):
        return None
    assert isinstance(layers, int)
    assert isinstance(heads, int)
    assert isinstance(hidden, int)
    kv_heads = _positive(config.get("num_key_value_heads"), heads)
    head = _positive(config.get("head_dim"), hidden // heads)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    return 2 * layers * kv_heads * head * _BYTES.get(dtype.removeprefix("torch."), 2)


@lru_cache(maxsize=64)
def describe_checkpoint(root: str) -> dict[str, Any] | None:
    """``{"image": {...}, "kv_bytes_per_token": n}``, or None where the files are out of reach.

    Args:
        root: A folder, or a hub id whose files are in the local cache.
    """
    folder = find_checkpoint(root)
    if folder is None:
        return None
    config = _read(folder / "config.json")
    if config.get("model_type") != "vora":
        return None
    return {
        "image": image_settings(config, _read(folder / "preprocessor_config.json")),
        "kv_bytes_per_token": kv_bytes_per_token(config),
    }
