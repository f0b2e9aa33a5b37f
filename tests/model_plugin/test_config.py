"""VoRAConfig: a flat file, an LLM inside, nothing lost on the way through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, Qwen2Config, Qwen3Config

from model_plugin import VoRAConfig
from model_plugin.errors import ConfigError
from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import Make


def released() -> dict[str, Any]:
    return json.loads((FIXTURES / "merged" / "config.json").read_text())


def test_released_file() -> None:
    config = AutoConfig.from_pretrained(FIXTURES / "merged")
    assert isinstance(config, VoRAConfig)
    assert (config.grid_size, config.patch_dim) == (8, 588)
    assert config.is_mm_prefix_lm
    assert config.is_merged
    assert config.position_mode == "released"
    assert config.spatial_merge_size == 1
    inner = config.inner_config()
    assert isinstance(inner, Qwen2Config)
    assert inner.model_type == "qwen2"
    assert inner.rope_parameters["rope_theta"] == 10000.0
    assert inner.rms_norm_eps == config.rms_norm_eps == 1e-6
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        assert getattr(inner, key) == getattr(config, key) == released()[key]


@pytest.mark.parametrize("llm", ["qwen2", "llama", "qwen3"])
def test_the_llm_gets_its_keys(make_checkpoint: Make, llm: str) -> None:
    config = AutoConfig.from_pretrained(make_checkpoint(llm=llm))
    inner = config.inner_config()
    assert type(inner) is {"qwen2": Qwen2Config, "llama": LlamaConfig, "qwen3": Qwen3Config}[llm]
    assert inner.rope_parameters["rope_theta"] == 20000.0
    assert inner.rms_norm_eps == config.rms_norm_eps == 1e-4
    assert inner.num_attention_heads * 32 == config.hidden_size == 64
    assert getattr(inner, "head_dim", None) in (None, 32)
    assert not hasattr(inner, "vision_attention_mask")


@pytest.mark.parametrize("llm", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("style", ["released", "ours"])
def test_writing_and_reading_again(
    tmp_path: Path, make_checkpoint: Make, llm: str, style: str
) -> None:
    config = AutoConfig.from_pretrained(make_checkpoint(llm=llm, style=style, layout="pretrain"))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    where = {"_name_or_path": None}
    assert again.to_dict() | where == config.to_dict() | where
    assert again.inner_config().to_dict() == config.inner_config().to_dict()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "vora"
    assert written["hidden_size"] == 64  # flat
    assert written["lora"]["r"] == 8


def test_from_an_llm() -> None:
    llm = Qwen3Config(hidden_size=64, num_hidden_layers=2, vocab_size=99, rope_theta=5e5)
    config = VoRAConfig.from_llm_config(
        llm, image_size=56, vision_embedding_intermediate_size=32, position_mode="interpolate"
    )
    assert config.llm_model_type == "qwen3"
    assert config.architectures == ["VoRAForCausalLM"]
    assert config.grid_size == 4
    assert config.inner_config().rope_parameters["rope_theta"] == 5e5
    assert config.inner_config().vocab_size == 99
    assert config.is_merged


@pytest.mark.parametrize(
    ("lora", "modules"),
    [
        (None, 0),
        ({}, 0),
        ({"r": -1, "layers": 2}, 0),
        ({"r": 0, "layers": 2}, 0),
        ({"r": 8, "layers": 2}, 14),
        ({"r": 8, "layers": "all"}, 21),
        ({"r": 8}, 21),
        ({"r": 8, "layers": 1, "target_modules": ["self_attn.q_proj"]}, 1),
    ],
)
def test_lora_modules(lora: Any, modules: int) -> None:
    config = VoRAConfig(**released() | {"lora": lora})
    assert config.is_merged == (modules == 0)
    assert len(config.lora_modules) == modules


@pytest.mark.parametrize("layers", [0, 9])
def test_lora_modules_stand_in_the_first_layers(layers: int) -> None:
    config = VoRAConfig(**released() | {"num_hidden_layers": 9, "lora": {"r": 1, "layers": layers}})
    found = {name.split(".")[3] for name in config.lora_modules}
    assert found == {str(i) for i in range(layers)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"llm_model_type": "mamba"}, "mamba.*qwen2, llama, qwen3"),
        ({"patch_size": 0}, "patch_size must be a positive integer"),
        ({"spatial_merge_size": 1.5}, "spatial_merge_size"),
        ({"image_size": "big"}, "image_size"),
        ({"image_size": 13}, "image_size 13 is smaller than patch_size 14"),
        ({"vision_attention_mask": "causal"}, "vision_attention_mask"),
        ({"position_mode": "rope"}, "position_mode"),
        ({"vision_embedding": "Other"}, "AIMv2Embedding"),
    ],
)
def test_values_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VoRAConfig(**released() | change)
