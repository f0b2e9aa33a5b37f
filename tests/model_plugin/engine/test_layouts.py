"""Checkpoints of every layout and LLM family through vLLM, exact."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model_plugin.conftest import Make, noise_image
from tests.model_plugin.engine.harness import (
    TOLERANCE,
    Case,
    assert_exact,
    difference,
    generate,
    needs_vllm,
    running_engine,
)
from tests.oracle import Oracle

pytestmark = [needs_vllm, pytest.mark.engine, pytest.mark.filterwarnings("default")]

#: Every value of every option at least once.
LAYOUTS: dict[str, dict[str, Any]] = {
    "qwen2_pretraining_sharded": {"layout": "pretrain", "files": "sharded", "resolution": "native"},
    "llama_pickled_biases": {"llm": "llama", "layout": "finetuned", "files": "bin"},
    "llama_plain_tied": {"llm": "llama", "biases": False, "tied": True, "style": "ours"},
    "qwen3_merging_tokens": {
        "llm": "qwen3",
        "files": "sharded-bin",
        "spatial_merge_size": 2,
        "resolution": "native",
        "position_mode": "interpolate",
    },
    "qwen2_small_patches": {"patch_size": 8, "image_size": 64, "style": "ours", "tied": True},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(make_checkpoint: Make, name: str) -> None:
    path = make_checkpoint(seed=4, **LAYOUTS[name])
    cases = [
        Case(
            "Which is larger, <image> or <image>?", [noise_image(90, 70, 1), noise_image(50, 120)]
        ),
        Case("A circle."),
    ]
    with running_engine(path) as engine:
        outputs = generate(engine, cases)
    assert_exact(Oracle(path), cases, outputs)


@pytest.mark.parametrize("quirk", ["biases", "positions", "padding"])
def test_flipped_quirks_are_noticed(make_checkpoint: Make, quirk: str) -> None:
    """The check can fail: an oracle with one quirk flipped disagrees."""
    path = make_checkpoint(seed=4)
    flipped: dict[str, dict[str, Any]] = {
        "biases": {"biases": False},
        "positions": {"position_mode": "interpolate"},
        "padding": {"padding": "corner"},
    }
    case = Case("What is <image>?", [noise_image(90, 40, 1)])
    # Interpolation changes nothing at the learned size; the oracle sees the image natively there.
    if quirk == "positions":
        path = make_checkpoint(seed=4, resolution="native")
    with running_engine(path) as engine:
        [output] = generate(engine, [case])
    assert difference(Oracle(path), case, output) < TOLERANCE
    assert difference(Oracle(path, **flipped[quirk]), case, output) > 100 * TOLERANCE
