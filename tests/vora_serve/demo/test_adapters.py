"""The demo's adapters: the whole of their training, cut to a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_plugin.adapted import AdaptedCheckpoint
from vora_core.adapter import AdapterHeader
from vora_core.identity import llm_digest
from vora_serve.demo.adapters import (
    CHECKPOINT,
    LLM,
    SPECIALISTS,
    read_adapters_recipe,
    train_adapters,
)

SHORTER = [
    "held_out=10",
    *(f"adapters.{name}.optimisation.steps=2" for name in ("shapes", "digits")),
    *(f"adapters.{name}.optimisation.batch_size=12" for name in ("shapes", "digits")),
]


def test_what_is_checked_in_belongs_together() -> None:
    """Both adapters to their LLM, which is the demo model's, bit for bit; and they are small."""
    for name in read_adapters_recipe().adapters:
        AdaptedCheckpoint(SPECIALISTS / LLM, SPECIALISTS / name).check()
    digests = [
        llm_digest(folder, json.loads((folder / "config.json").read_text()))
        for folder in (SPECIALISTS / LLM, CHECKPOINT)
    ]
    assert digests[0] == digests[1]
    assert sum(file.stat().st_size for file in SPECIALISTS.rglob("*")) < 6_000_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_are_trained_on_one_llm(tmp_path: Path) -> None:
    out = train_adapters(read_adapters_recipe(overrides=SHORTER), tmp_path)
    headers = {name: AdapterHeader.open(out / name) for name in ("shapes", "digits")}
    assert headers["shapes"].base_digest == headers["digits"].base_digest
    assert headers["shapes"].image_settings != headers["digits"].image_settings
    for name in headers:
        AdaptedCheckpoint(out / "llm", out / name).check()
    report = json.loads((out / "report.json").read_text())
    assert set(report) == {"shapes", "digits"}
    assert set(report["digits"]) == {"colour, one shape", "shape, one shape", "digit"}
    assert "| digit | 10 |" in (out / "README.md").read_text()
