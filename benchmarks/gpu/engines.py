"""The engines that are compared: which checkpoint, which settings, in which order of importance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from loadtest.checkpoints import build_llava, build_qwen2_5_vl, build_vora
from loadtest.shapes import shape

Family = Literal["vora", "llava", "qwen"]
_NONE: Mapping[str, Any] = MappingProxyType({})

#: GPU memory of an engine of the 7B shape: weights, KV cache, activations, graphs, CUDA's own.
GIB_PER_ENGINE = 24
KV_CACHE_BYTES = 9 << 29
#: All engines run with these.
SETTINGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "load_format": "dummy",
    "enable_prefix_caching": False,
    "mm_processor_cache_gb": 0,
    "seed": 0,
}
FULL_SETTINGS: dict[str, Any] = SETTINGS | {
    # With the cache's size given, vLLM neither profiles memory nor keeps to this share.
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": KV_CACHE_BYTES,
    "max_model_len": 20480,
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 256,
}
TINY_SETTINGS: dict[str, Any] = SETTINGS | {
    "enforce_eager": True,
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": 1 << 26,
    "max_model_len": 2048,
    "max_num_batched_tokens": 1024,
    "max_num_seqs": 4,
}


@dataclass(frozen=True)
class Engine:
    """An engine of the comparison.

    Args:
        name: in tables.
        family: whose checkpoint it serves.
        merge: of VoRA; m x m patches are one token.
        settings: of vLLM, beside those that all share.
        environment: variables of its process.
        rehearsed: whether a CPU can run it.
    """

    name: str
    family: Family
    merge: int = 1
    settings: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    environment: Mapping[str, str] = field(default_factory=lambda: _NONE)
    rehearsed: bool = True


#: The first is what the others are compared with. What a GPU has no memory for is left out, from
#: the end.
ENGINES = (
    Engine("VoRA", "vora"),
    Engine("LLaVA", "llava"),
    Engine("VoRA, merge 2", "vora", merge=2),
    Engine(
        "VoRA, image rows skipped",
        "vora",
        environment={"VORA_SKIP_IMAGE_ROWS": "1"},
        rehearsed=False,
    ),
    Engine("VoRA, FP8 weights", "vora", settings={"quantization": "fp8"}, rehearsed=False),
    Engine("Qwen2.5-VL", "qwen", rehearsed=False),
)


def chosen(rehearse: bool, gib: float) -> list[Engine]:
    """The engines that this machine has room for.

    Args:
        rehearse: on a CPU, with tiny shapes.
        gib: GPU memory that is free.
    """
    if rehearse:
        return [engine for engine in ENGINES if engine.rehearsed]
    return list(ENGINES[: max(1, int(gib // GIB_PER_ENGINE))])


def build(engine: Engine, folder: Path, rehearse: bool) -> Path:
    """The engine's checkpoint, whose weights take no room on disk: vLLM makes them up."""
    out = folder / f"{engine.family}-{engine.merge}"
    if out.exists():
        return out
    size = shape("tiny" if rehearse else "7b")
    if engine.family == "vora":
        build_vora(out, size, merge=engine.merge, sparse=True)
    elif engine.family == "llava":
        build_llava(out, size, sparse=True)
    else:
        build_qwen2_5_vl(out, size, sparse=True)
    return out


def specification(engine: Engine, checkpoint: Path, rehearse: bool) -> dict[str, Any]:
    """The specification that an engine's process receives."""
    common = TINY_SETTINGS if rehearse else FULL_SETTINGS
    images = 2 if rehearse else 16
    settings = common | {"limit_mm_per_prompt": {"image": images}} | dict(engine.settings)
    if engine.family == "qwen":
        settings["limit_mm_per_prompt"] = {"image": images, "video": 0}
    return {
        "checkpoint": str(checkpoint),
        "stock": engine.family != "vora",
        "settings": settings,
        "rehearse": rehearse,
    }
