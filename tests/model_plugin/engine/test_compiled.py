"""torch.compile stays on, and stays exact."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import noise_image, open_image
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


def test_compiled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import CompilationMode

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    cases = [
        Case("A circle and a square."),
        Case("What is <image>?", [open_image("a.png")]),
        Case("<image><image> Which is red?", [open_image("b.png"), noise_image(60, 90)]),
    ]
    with running_engine(FIXTURES / "merged", enforce_eager=False) as engine:
        compilation = engine.llm_engine.vllm_config.compilation_config
        assert compilation.mode == CompilationMode.DYNAMO_TRACE_ONCE
        assert compilation.backend == "inductor"
        outputs = generate(engine, cases)
        again = generate(engine, cases, prompt_logprobs=False)
    oracle = Oracle(FIXTURES / "merged")
    assert_exact(oracle, cases, outputs)
    assert_exact(oracle, cases, again)
