"""The released fixtures through vLLM, as the released implementation computed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import open_image
from tests.model_plugin.engine.harness import (
    TOLERANCE,
    Case,
    assert_exact,
    dense,
    difference,
    generate,
    needs_vllm,
    running_engine,
)
from tests.oracle import Oracle

pytestmark = [needs_vllm, pytest.mark.engine, pytest.mark.filterwarnings("default")]


def test_fixed_resolution() -> None:
    with running_engine(FIXTURES / "merged") as engine:
        check_released(engine, "text_only", "a.png")
        check_released(engine, "one_image", "a.png")


def test_native_resolution(tmp_path: Path) -> None:
    folder = tmp_path / "native"
    folder.mkdir()
    for file in (FIXTURES / "merged").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps(settings | {"resolution": "native", "max_pixels": 14 * 14 * 200})
    )
    with running_engine(folder) as engine:
        check_released(engine, "native_large", "native_large.png")


def test_pretraining_layout() -> None:
    """LoRA is merged as it streams by; what trained with it is left out."""
    oracle = Oracle(FIXTURES / "pretrain")
    case = Case("What is <image>?", [open_image("b.png")])
    with running_engine(FIXTURES / "pretrain") as engine:
        outputs = generate(engine, [case])
    assert_exact(oracle, [case], outputs)
    without = Oracle(FIXTURES / "pretrain", lora=False)
    assert difference(without, case, outputs[0]) > 100 * TOLERANCE


def check_released(engine: Any, name: str, image: str) -> None:
    """What the released implementation gave for a fixture."""
    expected = json.loads((FIXTURES / "expected" / f"{name}.json").read_text())
    logprobs = np.load(FIXTURES / "expected" / f"{name}.npz")["logprobs"]
    images = [open_image(image)] if expected["vision_tokens"] else []
    case = Case(expected["prompt"], images, max_tokens=len(expected["greedy"]))
    [output] = generate(engine, [case])
    assert len(output.prompt_token_ids) == expected["prompt_len"]
    assert list(output.outputs[0].token_ids) == expected["greedy"]
    got = np.stack([dense(row) for row in output.prompt_logprobs[1:]])
    assert np.abs(got - logprobs[:-1]).max() < TOLERANCE
    assert np.abs(dense(output.outputs[0].logprobs[0]) - logprobs[-1]).max() < TOLERANCE
