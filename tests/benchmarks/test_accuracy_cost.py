"""The comparison of accuracy and cost: its questions, its arithmetic, and a run in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy_cost import report
from benchmarks.accuracy_cost.systems import SYSTEMS
from benchmarks.accuracy_cost.world import ANSWERS, Samples, held_out
from tests.import_rules import ROOT

VORA, ENCODER = SYSTEMS[0], SYSTEMS[-1]


def test_questions_are_balanced_and_images_are_their_own() -> None:
    items = held_out(12)
    assert len(items) == 12 * len(ANSWERS)
    for family, answers in ANSWERS.items():
        counts = Counter(item.answer for item in items if item.group == family)
        assert set(counts) <= set(answers)
        assert max(counts.values()) - min(counts[answer] for answer in answers) <= 1
    again = held_out(12)
    assert [(i.question, i.image.tobytes()) for i in items] == [
        (i.question, i.image.tobytes()) for i in again
    ]


def test_samples_depend_on_seed_and_stage_alone() -> None:
    one, same, seed, stage = Samples(1, 1), Samples(1, 1), Samples(2, 1), Samples(1, 2)
    for index in range(5):
        assert one[index].messages == same[index].messages
    assert any(one[i].messages != seed[i].messages for i in range(5))
    assert any(one[i].messages != stage[i].messages for i in range(5))
    without = [i for i in range(200) if not one[i].images]
    assert 5 < len(without) < 45  # a tenth is text alone


def results(**right: list[float]) -> report.Results:
    accuracy: dict[str, list[dict[str, Any]]] = {
        name.replace("_", "-"): [
            {
                "seed": seed,
                "right": dict.fromkeys(ANSWERS, value),
                "blank": dict.fromkeys(ANSWERS, 0.2) if seed == 1 else None,
                "image_tokens": 36,
            }
            for seed, value in enumerate(values, 1)
        ]
        for name, values in right.items()
    }
    latency = {name: [[0.01, 0.02, 0.03], [0.02] * 3] for name in accuracy}
    latency["encoder"] = [[0.03, 0.04, 0.05], [0.04] * 3]
    settings = {
        "first": 1, "second": 2, "batch": 3, "per_family": 4, "llm": "tiny",
        "encoder_images": 5, "encoder_steps": 6,
    }  # fmt: skip
    gflop = dict.fromkeys(accuracy, 0.02)
    return report.Results(accuracy, latency, gflop, settings, "a machine")


def test_differences_are_paired_by_seed() -> None:
    mean, half = report.differs([60.0, 70.0, 80.0], [55.0, 65.0, 75.0])
    assert (mean, half) == (5.0, 0.0)  # the same in each seed, however much the seeds differ
    mean, half = report.differs([60.0, 70.0, 80.0], [50.0, 72.0, 70.0])
    assert mean == pytest.approx(6.0)
    assert half == pytest.approx(4.303 * 6.928203 / 3**0.5, rel=1e-4)
    assert report.differs([1.0], [2.0])[1] == float("inf")


def test_the_report_holds_table_plot_and_findings(tmp_path: Path) -> None:
    found = results(vora=[0.5, 0.52, 0.54], encoder=[0.7, 0.71, 0.74])
    table = report.write_report(found, tmp_path)
    assert f"| {VORA.title} | 36 | 0.020 | 20.0 | 1.00 ± 0.00 | 52.0 ± 2.0 |" in table
    assert f"| {ENCODER.title} | 36 | 0.020 | 40.0 | 2.00 ± 0.00 | 71.7 ± 2.1 |" in table
    text = (tmp_path / report.REPORT).read_text()
    assert "minus VoRA: colour +19.7 ± 1.4;" in text
    assert "(within the spread)" not in text
    assert (tmp_path / report.PLOT).stat().st_size > 10_000
    near = results(vora=[0.5, 0.6, 0.5], encoder=[0.6, 0.5, 0.6])
    report.write_report(near, tmp_path)
    assert "(within the spread)" in (tmp_path / report.REPORT).read_text()


def test_another_seed_agrees_or_does_not(tmp_path: Path) -> None:
    near = results(vora=[0.50, 0.52, 0.54], encoder=[0.70, 0.71, 0.72])
    allowed, far, title = report.repeats(near, SYSTEMS[:1] + SYSTEMS[-1:])
    # The spread in common: (2 * 2^2 + 2 * 1^2) / 4, with four degrees of freedom.
    assert allowed == pytest.approx(2.776 * (2.5 * 1.5) ** 0.5)
    assert (far, title) == (pytest.approx(3.0), VORA.title)
    report.write_report(near, tmp_path)
    assert "another seed agrees within the spread" in (tmp_path / report.REPORT).read_text()
    other = results(
        vora=[0.5, 0.5, 0.6], encoder=[0.7, 0.7, 0.7], merge_pixels=[0.5, 0.5, 0.5],
        merge_tokens=[0.5, 0.5, 0.5],
    )  # fmt: skip
    (tmp_path / report.NOTES).write_text("Nothing much.")
    report.write_report(other, tmp_path)
    text = (tmp_path / report.REPORT).read_text()
    assert "another seed does not agree within the spread" in text
    assert "## What it says\n\nNothing much.\n\n" in text


def command(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    small = (
        "--seeds 1 --first 3 --second 3 --batch 4 --text-steps 3 --encoder-steps 3 "
        "--encoder-images 64 --questions 6 --requests 2 --repeats 1"
    )
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.accuracy_cost", "--out", str(folder / "out"),
         "--work", str(folder / "work"), *small.split(), *more],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_a_run_in_small_ends_in_a_report_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stopped = command(tmp_path, "--minutes", "0")
    assert stopped.returncode == 1
    assert stopped.stderr.endswith("There is nothing to report on yet.\n")
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for system in SYSTEMS:
        assert system.title in done.stdout
        found = json.loads((tmp_path / "out" / f"{system.name}_s1.json").read_text())
        assert set(found["right"]) == set(found["blank"]) == set(ANSWERS)
    tokens = [
        json.loads((tmp_path / "out" / f"{s.name}_s1.json").read_text())["image_tokens"]
        for s in SYSTEMS
    ]
    assert tokens == [36, 9, 36, 36]
    assert "–" not in done.stdout  # every latency is there
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*.json")}
    again = command(tmp_path)
    assert again.returncode == 0
    assert again.stdout == done.stdout
    del before["settings.json"]
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*.json")}
    assert {name: after[name] for name in before} == before  # nothing was done again
    other = command(tmp_path, "--first", "4")
    assert other.returncode == 1
    assert "is of a run with other settings" in other.stderr
