"""The demo's adapters: the whole of their training, cut to a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_plugin.adapted import AdaptedCheckpoint
from vora_core.adapter import AdapterHeader
from vora_serve.demo.adapters import read_adapters_recipe, train_adapters
from vora_serve.demo.recipe import read_demo_recipe

SHORT = ["text.optimisation.batch_size=12"]
SHORTER = [
    "held_out=10",
    "text_steps=2",
    *(f"adapters.{name}.optimisation.steps=2" for name in ("shapes", "digits")),
    *(f"adapters.{name}.optimisation.batch_size=12" for name in ("shapes", "digits")),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_are_trained_on_one_llm(tmp_path: Path) -> None:
    out = train_adapters(read_demo_recipe(overrides=SHORT), read_adapters_recipe(overrides=SHORTER), tmp_path)  # fmt: skip  # noqa: E501
    headers = {name: AdapterHeader.open(out / name) for name in ("shapes", "digits")}
    assert headers["shapes"].base_digest == headers["digits"].base_digest
    assert headers["shapes"].image_settings != headers["digits"].image_settings
    for name in headers:
        AdaptedCheckpoint(out / "llm", out / name).check()
    report = json.loads((out / "report.json").read_text())
    assert set(report) == {"shapes", "digits"}
    assert set(report["digits"]) == {"colour, one shape", "shape, one shape", "digit"}
    assert "| digit | 10 |" in (out / "README.md").read_text()
