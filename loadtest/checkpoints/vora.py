"""A VoRA checkpoint with random weights, in the released layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from loadtest.checkpoints.qwen2 import qwen2_keys, qwen2_shapes
from loadtest.checkpoints.tokenizer import special_id, write_tokenizer
from loadtest.checkpoints.writer import Dims, new_folder, write_json, write_weights
from loadtest.shapes import Shape
from vora_core.errors import ConfigError

_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
}


def build_vora(
    out: Path,
    shape: Shape,
    *,
    merge: int = 1,
    resolution: Literal["fixed", "native"] = "fixed",
    seed: int = 0,
    overwrite: bool = False,
    sparse: bool = False,
) -> int:
    """Write the checkpoint.

    Args:
        out: folder to make.
        shape: sizes; the image is the baseline tower's, in side and patch.
        merge: m; m x m patches become one token of the LLM.
        resolution: every image as a square of that side, or at its own size.
        seed: decides the weights.
        overwrite: replace ``out``.
        sparse: weights of zeros that take no room on disk.

    Returns:
        Number of parameters.

    Raises:
        ConfigError: ``out`` exists, or the image does not divide by ``merge``.
    """
    side, patch = shape.tower.image_size, shape.tower.patch_size
    if merge < 1 or (side // patch) % merge:
        raise ConfigError(f"A grid of {side // patch} patches cannot be merged {merge} x {merge}.")
    config = qwen2_keys(shape.llm) | {
        "architectures": ["VoRAForCausalLM"],
        "model_type": "vora",
        "llm_model_type": "qwen2",
        "image_size": side,
        "image_token_id": special_id(shape.llm.vocab, "<|image_pad|>"),
        "patch_size": patch,
        "spatial_merge_size": merge,
        "position_mode": "interpolate",
        "vision_embedding": "AIMv2Embedding",
        "vision_embedding_intermediate_size": shape.embedder,
        "vision_attention_mask": "bidirectional",
        "aux_vision": "",
        "skip_aux_cls": False,
        "extra_biases": [],
        "lora": {"r": -1, "layers": min(24, shape.llm.layers)},
        "loadtest": {"weights": "random", "seed": seed},
    }
    pixels = _CLIP | {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "VoRAImageProcessor",
        "image_size": side,
        "merge_size": merge,
        "patch_size": patch,
        "processor_class": "VoRAProcessor",
        "resolution": resolution,
        "size": {"shortest_edge": side},
    }
    with new_folder(out, overwrite) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / "preprocessor_config.json", pixels)
        write_tokenizer(folder, shape.llm.vocab, shape.llm.max_positions)
        return write_weights(folder, _shapes(shape, merge), seed, sparse=sparse)


def _shapes(shape: Shape, merge: int) -> Iterator[tuple[str, Dims]]:
    width, patch = shape.embedder, shape.tower.patch_size
    yield from qwen2_shapes(shape.llm, "llm.model.", "llm.")
    yield "vision_embedding.patchifier.proj.weight", (width, 3, patch, patch)
    yield "vision_embedding.patchifier.proj.bias", (width,)
    yield "vision_embedding.patchifier.norm.weight", (width,)
    yield "vision_embedding.pos_embed", (1, shape.tower.tokens, width)
    yield "vision_embedding.out_proj.weight", (shape.llm.hidden, width * merge**2)
