"""What vLLM makes of the evidence run's engines, at their real shapes, on a GPU of 80 GB."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.gpu.engines import ENGINES, Engine, build, specification
from benchmarks.gpu.workloads import TINY, Workload
from loadtest.cost.checkpoint import read_checkpoint
from tests.cuda_stand_in.test_engine import stand_in_engine
from tests.model_plugin.conftest import Make
from tests.model_plugin.engine.harness import bare_model, engine_config


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_settings(engine: Engine, tmp_path: Path) -> None:
    from vllm.config.compilation import CUDAGraphMode

    told = specification(engine, build(engine, tmp_path, rehearse=False), rehearse=False)
    config = engine_config(told["checkpoint"], **told["settings"])
    assert config.use_v2_model_runner
    assert config.compilation_config.cudagraph_mode == CUDAGraphMode.FULL_AND_PIECEWISE
    assert config.scheduler_config.max_num_batched_tokens == 8192
    assert config.model_config.quantization == engine.settings.get("quantization")
    backend = config.attention_config.backend
    assert (backend is not None and backend.name == "CUSTOM") == (engine.family == "vora")


def test_fp8_weights(make_checkpoint: Make) -> None:
    """The LLM's linear layers are quantised as they load; the patch embedder is left alone."""
    path = make_checkpoint()
    with bare_model(path, dtype="bfloat16", quantization="fp8") as model:
        methods = {
            name: type(module.quant_method).__name__
            for name, module in model.named_modules()
            if hasattr(module, "quant_method")
        }
        model.load_weights(iter(load_file(path / "model.safetensors").items()))
    layers = {name: method for name, method in methods.items() if name.endswith("proj")}
    assert layers
    assert all("Fp8" in method for method in layers.values()), layers
    assert not any("vision_embedding" in name for name in methods)


def test_measurements_with_model_runner_v2(tmp_path: Path) -> None:
    """Steps are asynchronous there: tokens come a step late, and none may be missed."""
    path = build(ENGINES[0], tmp_path, rehearse=True)
    settings = specification(ENGINES[0], path, rehearse=True)["settings"] | {"dtype": "float32"}
    with stand_in_engine(path, **settings) as engine:
        workload = Workload(engine, read_checkpoint(path), TINY)
        one, two = (workload.run("ttft", count) for count in (1, 2))
        image = (TINY.side // 14) ** 2
        assert abs(two["prompt_tokens"] - one["prompt_tokens"] - image) <= 2
        decoding = workload.run("decode", 2)
    assert 0 < decoding["generated"] <= 2 * (TINY.tokens - 1)
    assert decoding["engine_s"] > 0
