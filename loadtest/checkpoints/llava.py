"""The compute-equal baseline: LLaVA's recipe, which stock vLLM serves.

The same LLM, a SigLIP-architecture tower whose patches all go on (no class token, no selection),
and a two-layer MLP as connector.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadtest.checkpoints.qwen2 import qwen2_keys, qwen2_shapes
from loadtest.checkpoints.tokenizer import special_id, write_tokenizer
from loadtest.checkpoints.writer import Dims, new_folder, write_json, write_weights
from loadtest.shapes import Shape, TowerShape


def build_llava(
    out: Path, shape: Shape, *, seed: int = 0, overwrite: bool = False, sparse: bool = False
) -> int:
    """Write the checkpoint.

    Args:
        out: folder to make.
        shape: sizes.
        seed: decides the weights.
        overwrite: replace ``out``.
        sparse: weights of zeros that take no room on disk.

    Returns:
        Number of parameters.

    Raises:
        ConfigError: ``out`` exists.
    """
    tower, llm = shape.tower, shape.llm
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_seq_length": tower.tokens,
        "image_token_index": special_id(llm.vocab, "<|image_pad|>"),
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": qwen2_keys(llm)
        | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        "tie_word_embeddings": llm.tied,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": tower.hidden,
            "image_size": tower.image_size,
            "intermediate_size": tower.intermediate,
            "layer_norm_eps": 1e-6,
            "model_type": "siglip_vision_model",
            "num_attention_heads": tower.heads,
            "num_channels": 3,
            "num_hidden_layers": tower.layers,
            "patch_size": tower.patch_size,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "loadtest": {"weights": "random", "seed": seed},
    }
    side = {"height": tower.image_size, "width": tower.image_size}
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": side,
    }
    processor = {
        "image_token": "<|image_pad|>",
        "num_additional_image_tokens": 0,
        "patch_size": tower.patch_size,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "full",
    }
    with new_folder(out, overwrite) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / "preprocessor_config.json", pixels)
        write_json(folder / "processor_config.json", processor)
        write_tokenizer(folder, llm.vocab, llm.max_positions)
        return write_weights(folder, _shapes(shape), seed, sparse=sparse)


def _shapes(shape: Shape) -> Iterator[tuple[str, Dims]]:
    yield from qwen2_shapes(shape.llm, "language_model.model.", "language_model.")
    yield from _tower_shapes(shape.tower, "vision_tower.vision_model.")
    hidden = shape.llm.hidden
    yield "multi_modal_projector.linear_1.weight", (hidden, shape.tower.hidden)
    yield "multi_modal_projector.linear_1.bias", (hidden,)
    yield "multi_modal_projector.linear_2.weight", (hidden, hidden)
    yield "multi_modal_projector.linear_2.bias", (hidden,)


def _tower_shapes(tower: TowerShape, top: str) -> Iterator[tuple[str, Dims]]:
    hidden, wide, patch = tower.hidden, tower.intermediate, tower.patch_size
    yield f"{top}embeddings.patch_embedding.weight", (hidden, 3, patch, patch)
    yield f"{top}embeddings.patch_embedding.bias", (hidden,)
    yield f"{top}embeddings.position_embedding.weight", (tower.tokens, hidden)
    for layer in range(tower.layers):
        at = f"{top}encoder.layers.{layer}."
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{at}{norm}.weight", (hidden,)
            yield f"{at}{norm}.bias", (hidden,)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{at}self_attn.{name}.weight", (hidden, hidden)
            yield f"{at}self_attn.{name}.bias", (hidden,)
        yield f"{at}mlp.fc1.weight", (wide, hidden)
        yield f"{at}mlp.fc1.bias", (wide,)
        yield f"{at}mlp.fc2.weight", (hidden, wide)
        yield f"{at}mlp.fc2.bias", (hidden,)
    yield f"{top}post_layernorm.weight", (hidden,)
    yield f"{top}post_layernorm.bias", (hidden,)
