"""Shapes by arithmetic are those of the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model_plugin import VoRAConfig, VoRAForCausalLM
from model_plugin.checkpoint import expected_shapes as of_config
from vora_core.errors import ConfigError
from vora_core.layout import LINEAR_LAYERS, biased_layers, expected_shapes

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "image_size": 56,
    "patch_size": 14,
    "vision_embedding_intermediate_size": 24,
}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"spatial_merge_size": 2},
        {"llm_model_type": "llama"},
        {"llm_model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"llm_model_type": "llama", "head_dim": 32},
        {"llm_model_type": "qwen3"},
        {"llm_model_type": "qwen3", "attention_bias": True},
        {"llm_model_type": "qwen3", "head_dim": 8, "num_key_value_heads": None},
        {"extra_biases": ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"]},
    ],
    ids=str,
)
def test_shapes_are_the_models(keys: dict[str, Any]) -> None:
    config = VoRAConfig(**(SIZES | keys))
    with torch.device("meta"):
        model = VoRAForCausalLM(config)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert of_config(config) == state
    biased = {layer for layer in LINEAR_LAYERS if f"llm.model.layers.0.{layer}.bias" in state}
    extra = {name.split(".", 3)[3] for name in config.extra_biases or []}
    assert set(biased_layers(config.to_dict())) == biased - extra


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="no hidden_size"):
        expected_shapes({"vocab_size": 3})
    with pytest.raises(ConfigError, match="'gpt2' is not supported"):
        expected_shapes(SIZES | {"llm_model_type": "gpt2"})
