"""Memory is counted before anything is loaded, and too little is said in one sentence."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from model_plugin.checkpoint import Checkpoint
from model_plugin.engine import explain
from tests.checkpoints import FIXTURES
from tests.model_plugin.engine.harness import engine_config, needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]

#: Qwen2.5-7B's sizes: what the released VoRA-7B is made of.
SEVEN_B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "vision_embedding_intermediate_size": 1536,
    "image_size": 448,
    "lora": None,
}


@pytest.fixture
def seven_b(tmp_path: Path) -> Path:
    """Configuration and tokenizer of a 7B-shaped VoRA; there are no weights."""
    for file in (FIXTURES / "merged").iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | SEVEN_B))
    return tmp_path


def test_parameters_are_counted_without_weights() -> None:
    from model_plugin.engine.memory import weight_bytes

    fixture = Checkpoint.open(FIXTURES / "merged")
    counted = weight_bytes(fixture.config, bytes_per_parameter=4)
    assert counted == sum(4 * prod(shape) for shape in fixture.shapes.values())


def test_too_little_memory_is_refused(seven_b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_plugin.engine import memory

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    settings: dict[str, Any] = {"load_format": "dummy", "dtype": "bfloat16"}
    monkeypatch.setattr(memory, "available_bytes", lambda: 12 << 30)
    with pytest.raises(ValueError, match=r"14\.2 GiB of weights") as refusal:
        engine_config(seven_b, **settings)
    said = explain(refusal.value)
    assert "2.0 GiB of KV cache (VLLM_CPU_KVCACHE_SPACE)" in said
    assert "12.0 GiB are available" in said
    assert "\n" not in said
    # Two ranks hold half of it each, on the same machine.
    with pytest.raises(ValueError, match=r"14\.2 GiB of weights"):
        engine_config(seven_b, tensor_parallel_size=2, **settings)
    monkeypatch.setattr(memory, "available_bytes", lambda: 40 << 30)
    engine_config(seven_b, **settings)
    monkeypatch.setattr(memory, "available_bytes", lambda: 12 << 30)
    monkeypatch.setenv("VORA_SKIP_MEMORY_CHECK", "1")
    engine_config(seven_b, **settings)
