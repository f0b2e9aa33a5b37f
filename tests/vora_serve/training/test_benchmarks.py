"""The benchmarks' arithmetic: same losses in both forms, steps to a loss, tables, tiny merges."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.training import ablation_report as report
from benchmarks.training import merge, throughput


def test_naive_form_and_ours_have_the_same_losses() -> None:
    arguments = argparse.Namespace(size="tiny", device="cpu", bf16=False, steps=1, peak_tflops=1.0)
    result = throughput.measure(arguments)
    assert result["largest_difference_of_losses"] < 1e-5
    assert 0 < result["naive"]["padding"] < 1


def curve(speed: float, steps: int = 400) -> list[float]:
    return [1 + 3 * float(np.exp(-speed * step / 100)) for step in range(steps)]


def results() -> list[dict[str, Any]]:
    found = []
    speeds = {("causal", "none"): 1.0, ("bidirectional", "block-wise"): 2.0}
    for (attention, mode), speed in speeds.items():
        for seed in (1, 2):
            found.append(
                {
                    "attention": attention,
                    "mode": mode,
                    "rank": 8,
                    "seed": seed,
                    "steps": 400,
                    "batch": 4,
                    "curves": {"lm": curve(speed), "aux_0": curve(speed)},
                    "held_out": [
                        {"step": 400, "held_out_accuracy": 0.5 + seed / 10, "held_out_lm": 1.0}
                    ],
                    "load": 1.0,
                    "cpu_seconds": 2.0,
                }
            )
    return found


def test_steps_to_a_loss_are_counted() -> None:
    values = [4.0] * 50 + [1.0] * 50
    assert report.steps_to(values, 1.0) == 50 + report.WINDOW
    assert report.steps_to(values, 0.5) is None
    ratios = report.relative_steps(results())
    assert ratios["causal", "none", 8] == [[1.0, 1.0, 1.0]] * 2
    twice = ratios["bidirectional", "block-wise", 8][0]
    assert all(0.45 < value < 0.65 for value in twice if value is not None), twice


def test_the_report_has_a_row_for_each_configuration_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    table = report.write_report(results(), tmp_path, "a machine", 36)
    assert table.count("\n") == 4
    assert "| 8 | causal | none | 2 | 1." in table
    assert "65.0 ± 7.1 %" in table
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert "4 of 36 runs are in" in text
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "losses_r8.png",
        "steps_r8.png",
        "blocks_r8.png",
    }


def test_the_merge_benchmark_measures_and_cleans_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen2Config

    small = Qwen2Config(
        hidden_size=64,
        intermediate_size=300,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
        tie_word_embeddings=False,
    )
    monkeypatch.setattr(merge, "known_shape", lambda _: small)
    arguments = argparse.Namespace(layers=2, rank=16, shard_gb=0.0002, no_verify=False)
    result = merge.measure(arguments, tmp_path)
    assert result["said"][0] == "Merged and unmerged model agree on a probe."
    assert result["largest_error_in_roundings"] <= 1.0
    assert 0.1 < result["peak_rss_gib"] < 3
    shards = list((tmp_path / "merged").glob("*.safetensors"))
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert len(shards) > 1
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}


def test_a_commands_peak_is_its_own_and_not_that_of_others(tmp_path: Path) -> None:
    """Neither an earlier command's nor that of the process that starts it."""
    held = bytearray(b"x") * (300 << 20)
    subprocess.run([sys.executable, "-c", "bytearray(b'x') * (400 << 20)"], check=True)
    said, peak, _ = merge.measured([sys.executable, "-c", "print('done')"], tmp_path)
    assert said == "done\n"
    assert 1 << 20 < peak < 100 << 20
    needs = "bytearray(b'x') * (200 << 20)"
    assert merge.measured([sys.executable, "-c", needs], tmp_path)[1] > 200 << 20
    assert len(held) == 300 << 20
