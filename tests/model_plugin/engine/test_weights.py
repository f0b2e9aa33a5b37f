"""Weights into vLLM's model: every tensor used, and whatever does not fit named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_plugin.checkpoint import Checkpoint
from model_plugin.errors import CheckpointError, ConfigError
from tests.model_plugin.conftest import Make
from tests.model_plugin.engine.harness import bare_model, needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Make) -> Path:
    return make_checkpoint(seed=7, layout="pretrain")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Iterator[Any]:
    with bare_model(checkpoint) as model:
        yield model


@pytest.fixture
def tensors(checkpoint: Path) -> Tensors:
    return dict(Checkpoint.open(checkpoint).raw_tensors())


@pytest.fixture
def merged(checkpoint: Path) -> Tensors:
    return dict(Checkpoint.open(checkpoint).tensors())


def test_every_tensor_arrives(model: Any, tensors: Tensors, merged: Tensors) -> None:
    """In the order of the file, then again the other way round, as a reload would come."""
    for order in (list(tensors.items()), list(reversed(tensors.items()))):
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
        loaded = model.load_weights(iter(order))
        assert loaded == {name for name, _ in model.named_parameters()}
        state = model.state_dict()
        block = "llm.model.layers.{}"
        for layer in range(3):
            attention, mlp = (f"{block.format(layer)}.{part}" for part in ("self_attn", "mlp"))
            for kind in ("weight", "bias"):
                qkv = [merged[f"{attention}.{x}_proj.{kind}"] for x in "qkv"]
                assert torch.equal(state[f"{attention}.qkv_proj.{kind}"], torch.cat(qkv))
                if kind == "bias" and layer == 2:
                    assert f"{mlp}.gate_up_proj.bias" not in state
                    assert f"{attention}.o_proj.bias" not in state
                    continue
                gate_up = [merged[f"{mlp}.{x}_proj.{kind}"] for x in ("gate", "up")]
                assert torch.equal(state[f"{mlp}.gate_up_proj.{kind}"], torch.cat(gate_up))
                for name in (f"{attention}.o_proj.{kind}", f"{mlp}.down_proj.{kind}"):
                    assert torch.equal(state[name], merged[name])
        same = merged.keys() & state.keys()
        assert len(same) > 20
        for name in same:
            # vLLM pads the vocabulary.
            assert torch.equal(state[name][: len(merged[name])], merged[name])


def test_half_of_a_fused_bias(model: Any, tensors: Tensors) -> None:
    """A layer with a bias on one half only gets zeros on the other."""
    name = "llm.model.layers.2.mlp.up_proj.bias"
    half = torch.randn(96)
    model.load_weights(iter([*tensors.items(), (name, half)]))
    bias = model.state_dict()["llm.model.layers.2.mlp.gate_up_proj.bias"]
    assert torch.equal(bias, torch.cat([torch.zeros(96), half]))


def refuse(model: Any, tensors: Tensors, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model.load_weights(iter(tensors.items()))


def test_unknown_tensors(model: Any, tensors: Tensors) -> None:
    extra = torch.zeros(4)
    refuse(
        model, tensors | {"llm.model.layers.0.mlp.w.weight": extra}, r"1 unknown \(llm.*mlp\.w\.w"
    )
    refuse(model, tensors | {"llm.model.norm.bias": extra}, r"1 unknown \(llm\.model\.norm\.bias\)")
    refuse(model, tensors | {"vision_tower.x": extra}, r"1 unknown \(vision_tower\.x\)")
    lora = "llm.model.layers.2.mlp.up_proj.lora_A.weight"
    refuse(model, tensors | {lora: extra}, r"1 unknown .*layers\.2\.mlp\.up_proj\.lora_A")


@pytest.mark.parametrize(
    "name",
    [
        "vision_embedding.pos_embed",
        "vision_embedding.patchifier.proj.bias",
        "llm.model.layers.2.mlp.down_proj.weight",
        "llm.model.layers.2.self_attn.k_proj.bias",
        "llm.model.embed_tokens.weight",
        "llm.lm_head.weight",
    ],
)
def test_missing_tensors(model: Any, tensors: Tensors, name: str) -> None:
    del tensors[name]
    refuse(model, tensors, rf"1 missing \({name}\)")


def test_missing_lora_factors(model: Any, tensors: Tensors) -> None:
    del tensors["llm.model.layers.1.mlp.up_proj.lora_B.weight"]
    refuse(model, tensors, r"lack a weight or a LoRA factor, llm\.model\.layers\.1\.mlp\.up_proj")


@pytest.mark.parametrize(
    "name",
    [
        "llm.model.layers.0.mlp.gate_proj.bias",
        "llm.model.layers.2.self_attn.o_proj.weight",
        "vision_embedding.out_proj.weight",
    ],
)
def test_wrong_shapes(model: Any, tensors: Tensors, name: str) -> None:
    shape = list(tensors[name].shape)
    tensors[name] = torch.zeros(*shape[:-1], shape[-1] + 1)
    refuse(model, tensors, rf"{name} is \[.*{shape[-1] + 1}\], but the configuration calls for")


def test_backends_that_ignore_images_stop_the_start(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    from model_plugin.engine.attention_cpu import SpanCPUAttentionBackend
    from model_plugin.engine.model import require_spans

    layers = [module for module in model.modules() if isinstance(module, Attention)]
    assert {layer.attn_backend for layer in layers} == {SpanCPUAttentionBackend}
    require_spans(model)
    monkeypatch.setattr(layers[1], "attn_backend", CPUAttentionBackend)
    with pytest.raises(ConfigError, match="CPU_ATTN computes images causally"):
        require_spans(model)
