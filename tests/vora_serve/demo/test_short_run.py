"""The whole of the demo's training, shortened to about two minutes on two cores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vora_serve.demo.recipe import read_demo_recipe
from vora_serve.demo.report import REPORT_FILES, read_metrics
from vora_serve.demo.train import train_demo

SHORTER = [
    "language_model={vocab_size: 512, hidden_size: 64, layers: 4, heads: 2, kv_heads: 2, mlp: 160}",
    "teacher.hidden_size=64",
    "teacher.layers=3",
    "teacher.heads=2",
    "teacher.mlp=160",
    "teacher.images=1000",
    "teacher.optimisation.steps=150",
    "teacher.optimisation.batch_size=16",
    "text.optimisation.steps=100",
    "text.optimisation.batch_size=16",
    "text.optimisation.micro_batch_size=16",
    "pretrain.lora_rank=16",
    "pretrain.optimisation.steps=160",
    "pretrain.optimisation.batch_size=16",
    "pretrain.optimisation.micro_batch_size=16",
    "finetune=[{max_length: 512, optimisation: {steps: 160, batch_size: 16, micro_batch_size: 16,"
    " lr: 1.0e-3, optimizer: muon, schedule: cosine, warmup_steps: 20, log_every: 20}}]",
    "held_out=60",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_run_learns_to_see(tmp_path: Path) -> None:
    out = train_demo(read_demo_recipe(overrides=SHORTER), tmp_path, processes=2)

    def curve(stage: str, key: str) -> tuple[float, float]:
        lines = read_metrics(tmp_path / "log" / stage / "metrics.jsonl")
        assert len(lines) > 2
        return lines[0][key], lines[-1][key]

    for stage, key in (
        ("text", "lm"),
        ("teacher", "loss"),
        ("pretrain", "lm"),
        ("pretrain", "distill"),
        ("finetune-1", "lm"),
    ):
        first, last = curve(stage, key)
        assert last < 0.8 * first, (stage, key, first, last)

    for name in (*REPORT_FILES, "config.json", "model.safetensors", "tokenizer.json"):
        assert (out / name).is_file(), name
    groups = {row["group"]: row for row in json.loads((out / "report.json").read_text())["groups"]}
    seen, blank = groups["colour, one shape"]["accuracy"], groups["colour, one shape"]["blank"]
    # 60 questions with six answers: guessing gets 10, and 30 is more than six deviations above.
    assert seen >= 0.5
    assert seen - blank >= 0.25
    assert (out / "model.safetensors").stat().st_size < 8 * 2**20
