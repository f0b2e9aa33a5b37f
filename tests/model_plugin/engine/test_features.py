"""vLLM's own features beside image spans: adapters, speculation by n-grams, half precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import noise_image, open_image
from tests.model_plugin.engine.harness import (
    TOLERANCE,
    Case,
    assert_exact,
    difference,
    engine_config,
    generate,
    needs_vllm,
    running_engine,
)
from tests.oracle import Oracle

pytestmark = [
    needs_vllm,
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

RANK = 4
#: Layers that the adapters change, with their input and output sizes in the fixture.
ADAPTED = {
    "self_attn.q_proj": (128, 128),
    "self_attn.v_proj": (128, 64),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (128, 256),
    "mlp.down_proj": (256, 128),
}
CASES = [
    Case("What is <image>? a a b a a b a a", [open_image("a.png")], max_tokens=12),
    Case("x y <image><image> x y", [open_image("b.png"), noise_image(90, 60)], max_tokens=12),
]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(FIXTURES / "merged")


def write_adapter(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """A LoRA adapter as peft writes it; returns each layer's change of weight."""
    generator = torch.Generator().manual_seed(1)
    tensors, changes = {}, {}
    for index in range(3):
        for layer, (inputs, outputs) in ADAPTED.items():
            name = f"layers.{index}.{layer}"
            a = 0.3 * torch.randn(RANK, inputs, generator=generator)
            b = 0.3 * torch.randn(outputs, RANK, generator=generator)
            tensors[f"{prefix}.{name}.lora_A.weight"] = a
            tensors[f"{prefix}.{name}.lora_B.weight"] = b
            changes[name] = b @ a
    folder.mkdir()
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "bias": "none",
        "target_modules": [layer.split(".")[1] for layer in ADAPTED],
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return changes


def test_lora_adapters(tmp_path: Path, oracle: Oracle) -> None:
    """Trained on the LLM alone or on the whole model, named accordingly, with extra biases."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    prefixes = {
        "llm": "base_model.model.model",
        "whole": "base_model.model.llm.model",
    }
    adapted = Oracle(FIXTURES / "merged")
    with running_engine(
        FIXTURES / "merged", enable_lora=True, max_lora_rank=8, max_loras=2
    ) as engine:
        for number, (name, prefix) in enumerate(prefixes.items(), 1):
            changes = write_adapter(tmp_path / name, prefix)
            outputs = engine.generate(
                [case.request() for case in CASES],
                SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=-1),
                use_tqdm=False,
                lora_request=LoRARequest(name, number, str(tmp_path / name)),
            )
            if number == 1:
                for layer, change in changes.items():
                    adapted.llm.get_submodule(f"model.{layer}").weight.data += change
            assert_exact(adapted, CASES, outputs)
            assert difference(oracle, CASES[0], outputs[0]) > 100 * TOLERANCE
        assert_exact(oracle, CASES, generate(engine, CASES))


def test_half_precision_stays_near(oracle: Oracle) -> None:
    """bfloat16 rounds, as it does in any model; it is no further off than rounding takes it."""
    with running_engine(FIXTURES / "merged", dtype="bfloat16") as engine:
        outputs = generate(engine, CASES)
    for case, output in zip(CASES, outputs, strict=True):
        assert TOLERANCE < difference(oracle, case, output) < 1


def test_speculation_by_ngrams(oracle: Oracle) -> None:
    """Loads numba, after which the next engine in this process starts all the same."""
    from vllm import SamplingParams

    ngram = {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 2,
    }
    with running_engine(FIXTURES / "merged", speculative_config=ngram) as engine:
        outputs = engine.generate(
            [case.request() for case in CASES],
            SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
            use_tqdm=False,
        )
    for case, output in zip(CASES, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == oracle.greedy(case.prompt, case.images)


def test_model_runner_v2(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer runner reports images to attention as the older does; it needs Triton."""
    from vllm.triton_utils import HAS_TRITON

    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    if not HAS_TRITON:
        with pytest.raises(ValueError, match="Model Runner V2 requires Triton"):
            engine_config(FIXTURES / "merged")
        pytest.skip("there is no Triton on CPU; vLLM says so at start-up")
    with running_engine(FIXTURES / "merged") as engine:
        assert engine.llm_engine.vllm_config.use_v2_model_runner
        assert_exact(oracle, CASES, generate(engine, CASES, prompt_logprobs=False))


INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head"],
}


def test_quantised_weights(tmp_path: Path, oracle: Oracle) -> None:
    """8-bit weights in vLLM's own format, extra biases and the embedder in full precision."""
    for file in (FIXTURES / "merged").iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"quantization_config": INT8}))
    tensors, rounded = {}, Oracle(FIXTURES / "merged")
    for name, tensor in load_file(FIXTURES / "merged" / "model.safetensors").items():
        if name.startswith("llm.model.layers.") and name.endswith("_proj.weight"):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            tensors[f"{name}_scale"] = scale
            tensor = (tensor / scale).round().to(torch.int8)
            layer = rounded.llm.get_submodule(name.removeprefix("llm.").removesuffix(".weight"))
            layer.weight.data = tensor.float() * scale
        tensors[name] = tensor
    save_file(tensors, str(tmp_path / "model.safetensors"))
    with running_engine(tmp_path) as engine:
        [output] = generate(engine, CASES[:1], prompt_logprobs=False)
    # Activations are rounded as well. The same weights without the biases are far further off.
    near = difference(rounded, CASES[0], output)
    without = difference(Oracle(FIXTURES / "merged", biases=False), CASES[0], output)
    assert near < 0.5 < without
