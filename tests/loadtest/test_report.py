"""Reports, comparisons of runs, exit codes: from a run's folder written here, without servers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from loadtest.analysis.regressions import compare_runs, load_results
from loadtest.analysis.summary import summarise
from loadtest.checkpoints import build_llava, build_vora
from loadtest.cli import main
from loadtest.cost import describe_checkpoint
from loadtest.drive.store import RunFolder
from loadtest.settings import parse_settings
from loadtest.shapes import shape
from tests.loadtest.test_measures import part


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("built")
    build_vora(out / "vora", shape("tiny"))
    build_llava(out / "llava", shape("tiny"))
    return {name: describe_checkpoint(out / name) for name in ("vora", "llava")}


def written(
    folder: Path,
    checkpoints: dict[str, Any],
    slower: float = 1.0,
    error: str = "",
    **more: Any,
) -> Path:
    """A complete run of six rounds: VoRA at 0.5 s, the baseline at 1 s."""
    tree: dict[str, Any] = {
        "name": "made <up>",
        "servers": [
            {"name": "vora", "kind": "vora", "model": "/models/vora"},
            {"name": "llava", "kind": "stock", "model": "/models/llava"},
        ],
        "workloads": [
            {
                "name": "image",
                "concurrency": [1],
                "rates": [2],
                "images": {},
                "level": {"ttft_ms": 800},
            }
        ],
    }
    settings = parse_settings(tree | more)
    run = RunFolder(folder)
    machine = {"processor": "p", "cores": 2, "isa": [], "memory_gib": 1, "gpus": []}
    run.begin(
        {
            "settings": settings.model_dump(mode="json"),
            "machine": machine | {"system": "s", "python": "3"},
            "versions": {"vllm": "0"},
            "started": "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T00:01:00+00:00",
            "load_at_start": [0.1, 0, 0],
            "load_at_end": [0.2, 0, 0],
            "checkpoints": checkpoints,
            "rates": {},
        },
        (),
    )
    metrics = {"engine_ttft": 0.4, "queue": 0.05, "prefill": 0.25}
    for point in ("image-448x448-c1", "image-448x448-r2"):
        for repeat in range(6):
            run.start_round(point, repeat)
            drift = 1 + 0.1 * repeat
            for name, seconds in (("vora", 0.5 * slower), ("llava", 1.0)):
                errors = [error if name == "vora" and repeat == 5 else "", ""]
                result = part([seconds * drift, seconds * drift * 1.1], errors, metrics=metrics)
                run.save(point, repeat, name, result | {"load": 0.5, "prompt_tokens": [286] * 2})
            run.complete(point, repeat)
    return folder


def test_the_report(
    tmp_path: Path, checkpoints: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "run", checkpoints)
    notes = tmp_path / "notes.md"
    notes.write_text("# Why\n\nBecause `x` is **y**.\n\n- one\n- two\n")
    assert main(["report", str(folder), "--notes", str(notes)]) == 0
    page = (folder / "report.html").read_text()
    text = (folder / "report.md").read_text()
    for shown in (page, text):
        assert "0.5 [0.5, 0.5]" in shown
        assert "differs" in shown
        assert "random" in shown
        assert "What this does not say" in shown
    assert page.count("<svg") == 4
    assert "made &lt;up&gt;" in page
    assert "<code>x</code> is <strong>y</strong>" in page
    # Self-contained: names of XML namespaces are no references.
    references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)""", page)
    assert all((a or b).startswith("#") for a, b in references)
    found = json.loads((folder / "results.json").read_text())
    pair = found["points"][0]["compared"][0]
    assert pair["expected"]["ttft"] < 1
    assert (
        found["best_rates"]
        == [
            {"workload": "image", "size": "448x448", "server": "vora", "rate_per_s": 2.0},
            {"workload": "image", "size": "448x448", "server": "llava", "rate_per_s": None},
        ]
        or {b["server"]: b["rate_per_s"] for b in found["best_rates"]}["vora"] == 2.0
    )
    assert "report:" in capsys.readouterr().out


def test_thresholds_and_errors_set_the_exit_status(
    tmp_path: Path, checkpoints: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    limit = {"max_ratio": {"image.ttft": 0.6}}
    fine = written(tmp_path / "fine", checkpoints, thresholds=limit)
    assert main(["report", str(fine)]) == 0
    slow = written(tmp_path / "slow", checkpoints, slower=1.4, thresholds=limit)
    assert main(["report", str(slow)]) == 1
    assert "ttft of vora / llava is above 0.6" in capsys.readouterr().out
    failed = written(tmp_path / "failed", checkpoints, error="cut off")
    assert main(["report", str(failed)]) == 1
    assert "1 requests to vora failed, with: cut off" in capsys.readouterr().out
    let = {"allow_errors": True}
    assert (
        main(["report", str(written(tmp_path / "let", checkpoints, error="x", thresholds=let))])
        == 0
    )


def test_compare(
    tmp_path: Path, checkpoints: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {
        "old": written(tmp_path / "old", checkpoints),
        "same": written(tmp_path / "same", checkpoints),
        "slow": written(tmp_path / "slow", checkpoints, slower=1.3),
        "failing": written(tmp_path / "failing", checkpoints, error="no"),
    }
    for folder in runs.values():
        summarise(RunFolder(folder))
    old = str(runs["old"])
    assert main(["compare", old, str(runs["same"])]) == 0
    assert "no change above 10%" in capsys.readouterr().out
    assert main(["compare", old, str(runs["slow"])]) == 1
    said = capsys.readouterr().out
    assert "WORSE image-448x448-c1 vora: TTFT p50 +30.0%" in said
    assert "WORSE image-448x448-c1: ttft of vora / llava 0.500 -> 0.650" in said
    assert "llava: TTFT" not in said
    assert main(["compare", str(runs["slow"]), old]) == 0
    assert main(["compare", old, str(runs["slow"]), "--threshold", "0.6"]) == 0
    assert main(["compare", old, str(runs["failing"])]) == 1
    assert "1 requests failed" in capsys.readouterr().out
    found = load_results(runs["old"])
    lines, worse = compare_runs(found, found | {"points": found["points"][:1]})
    assert worse
    assert lines == ["MISSING image-448x448-r2: measured before, not now"]


def test_plan(
    tmp_path: Path, checkpoints: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path / "run", checkpoints)
    summarise(RunFolder(folder))
    mix = tmp_path / "mix.yaml"
    mix.write_text(
        "rate: 3\nkinds: [{text_tokens: 30, output_tokens: 3, images: [[224, 224]]}]\n"
        "level: {ttft_ms: 2000}\n"
        "hardware: [{name: card, tflops: 100, gb_per_s: 900, memory_gb: 24, price_per_hour: 1}]\n"
    )
    assert main(["plan", str(folder), "--server", "vora", "--mix", str(mix), "--check"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\| the measured machine \| [1-9]", said)
    assert "| card | 1 | 1.00 |" in said
    # The point that it was calibrated on comes out again.
    row = next(line for line in said.splitlines() if line.startswith("| image-448x448-c1"))
    assert abs(int(row.split("|")[4].strip().rstrip("%"))) <= 2
    assert main(["plan", str(folder), "--server", "nobody", "--check"]) == 2
    assert main(["plan", str(folder), "--server", "vora"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "nowhere"], "nowhere holds no run"),
        (["compare", "nowhere.json", "nowhere.json"], "cannot be read"),
        (["run", "nowhere.yaml", "--out", "x"], "cannot be read"),
        (["run", "tiny", "--out", "x", "--set", "MODELS"], "NAME=VALUE"),
        (["vora", "build", "x", "--shape", "9b"], "Unknown shape"),
    ],
)
def test_usage_errors(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
