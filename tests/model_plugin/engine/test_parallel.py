"""Two ranks on CPU: sharded weights, biases added once, images embedded on the first stage."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import open_image
from tests.model_plugin.engine.harness import (
    Case,
    assert_exact,
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

CASES = [
    Case("A circle and a square."),
    Case("<image> or <image>?", [open_image("a.png"), open_image("b.png")]),
]


@pytest.mark.parametrize(
    "settings",
    [
        {"tensor_parallel_size": 2},
        # vLLM's CPU worker needs compilation for this.
        {"pipeline_parallel_size": 2, "enforce_eager": False},
    ],
    ids=["tensor", "pipeline"],
)
def test_two_ranks(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with running_engine(FIXTURES / "merged", processes=True, **settings) as engine:
        outputs = generate(engine, CASES, prompt_logprobs=False)
    assert_exact(Oracle(FIXTURES / "merged"), CASES, outputs)
