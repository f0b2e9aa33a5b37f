"""The evidence run: its time, what is left of sections that go wrong, its numbers, its report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import engines, floors, kernels, sections, worker
from benchmarks.gpu.findings import Floors, results
from benchmarks.gpu.programs import OutOfTimeError, Program
from benchmarks.gpu.records import Record, Row
from benchmarks.gpu.report import write_report
from benchmarks.gpu.sections import REPORT_S, SECTIONS, Run, Section
from benchmarks.gpu.workloads import TINY, Workload
from loadtest.checkpoints import build_llava, build_qwen2_5_vl, build_vora
from loadtest.cost.checkpoint import read_checkpoint
from loadtest.shapes import shape
from tests.model_plugin.engine.harness import needs_vllm, running_engine


def test_the_run_takes_less_than_nine_minutes() -> None:
    assert sum(section.limit_s for section in SECTIONS) + REPORT_S < 9 * 60
    assert all(section.limit_s > 0 for section in SECTIONS)


@pytest.mark.parametrize("build", [build_vora, build_llava, build_qwen2_5_vl])
def test_sparse_checkpoints_cost_what_real_ones_do(build: Any, tmp_path: Path) -> None:
    build(tmp_path / "real", shape("tiny"))
    build(tmp_path / "sparse", shape("tiny"), sparse=True)
    # Files also hold headers, which differ.
    real, sparse = (
        replace(read_checkpoint(tmp_path / name), weight_bytes=0) for name in ("real", "sparse")
    )
    assert sparse == real
    assert real.params > 1e6


def test_a_7b_checkpoint_takes_no_room(tmp_path: Path) -> None:
    path = engines.build(engines.ENGINES[0], tmp_path, rehearse=False)
    assert sum(file.stat().st_size for file in path.iterdir()) > 15e9
    assert sum(file.stat().st_blocks * 512 for file in path.iterdir()) < 50e6


def test_engines_that_the_gpu_has_no_memory_for_are_left_out() -> None:
    names = [engine.name for engine in engines.chosen(False, 79.0)]
    assert names == ["VoRA", "LLaVA", "VoRA, merge 2"]
    assert engines.chosen(False, 139.0) == list(engines.ENGINES[:5])
    assert [engine.name for engine in engines.chosen(False, 10.0)] == ["VoRA"]


def program(fault: str, folder: Path) -> Program:
    return Program("tests.benchmarks.faulty_program", fault, log=folder / "log")


def test_programs_that_hang_are_given_up(tmp_path: Path) -> None:
    running = program("hang", tmp_path)
    assert running.answer(time.monotonic() + 60) == {"measured": 1}
    with pytest.raises(OutOfTimeError):
        list(running.answers(time.monotonic() + 0.2))
    running.stop()
    running.stop()


def test_programs_that_fail_say_where_to_look(tmp_path: Path) -> None:
    running = program("fail", tmp_path)
    with pytest.raises(RuntimeError, match="exit code 3, see log"):
        list(running.answers(time.monotonic() + 60))
    running.stop()


def test_what_libraries_print_is_no_answer(tmp_path: Path) -> None:
    running = program("noise", tmp_path)
    try:
        assert running.answer(time.monotonic() + 60) == {"measured": 1}
        answer = running.ask({"kind": "ttft"}, time.monotonic() + 60)
        assert json.loads(answer["echo"]) == {"kind": "ttft"}
    finally:
        running.stop()
    assert "what a library prints" in (tmp_path / "log").read_text()
    with pytest.raises(RuntimeError, match="it has ended, see log"):
        running.ask({"kind": "ttft"}, time.monotonic() + 60)


def test_a_section_that_goes_wrong_keeps_its_rows_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(run: Run, record: Record, deadline: float) -> None:
        record.add({"rate": "bytes", "shape": "1 MiB", "per_second": 1e12})
        raise OutOfTimeError

    def broken(run: Run, record: Record, deadline: float) -> None:
        raise ValueError("not today\nTraceback")

    wrong = (
        Section("floors", "Floors", 10, late),
        Section("kernels", "Kernels", 10, broken),
        Section("end-to-end", "End to end", 10, lambda run, record, deadline: None),
    )
    monkeypatch.setattr(command, "SECTIONS", wrong)
    assert command.main(["--rehearse", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "floors: cut off after 280 s\n" in said
    assert "kernels: failed: ValueError: not today\n" in said
    assert "end-to-end: complete\n" in said
    kept = json.loads((tmp_path / "floors.json").read_text())
    assert len(kept["rows"]) == 1
    report = (tmp_path / "report.md").read_text()
    assert "| kernels | 0 | 280 | failed: ValueError: not today |" in report


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "free_gpu_gib", lambda: None)
    assert command.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--rehearse" in said
    assert not (tmp_path / "out").exists()


@needs_vllm
@pytest.mark.filterwarnings("default")
def test_floors_and_kernels() -> None:
    found: list[Row] = []
    floors.measure(True, found.append)
    kernels.measure(True, found.append)
    best = Floors.of(row for row in found if "rate" in row)
    assert best.flops
    assert best.bytes
    kinds = [row["kind"] for row in found if "kind" in row]
    assert kinds.count("time") == len(kernels.TINY_SHAPES)
    assert kinds.count("embedder") == 2
    assert all(row["good"] for row in found if row.get("kind") == "check")


def test_a_kernel_that_does_not_run_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    from model_plugin.engine import check_kernels

    def broken(batch: Any, *, spans: bool) -> Any:
        raise ModuleNotFoundError("No module named 'cutlass'")

    monkeypatch.setattr(check_kernels, "kernels_here", lambda device: {"broken": broken})
    found: list[Row] = []
    kernels.measure(True, found.append)
    [check] = [row for row in found if row["kind"] == "check"]
    assert not check["good"]
    assert check["said"] == "ModuleNotFoundError: No module named 'cutlass'"


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    vora = engines.ENGINES[0]
    path = engines.build(vora, tmp_path_factory.mktemp("models"), rehearse=True)
    with running_engine(path, **engines.specification(vora, path, rehearse=True)["settings"]) as up:
        yield Workload(up, read_checkpoint(path), TINY)


@needs_vllm
@pytest.mark.engine
@pytest.mark.filterwarnings("default")
def test_what_engines_are_asked_for(workload: Workload) -> None:
    image = (TINY.side // 14) ** 2
    one, two = (workload.run("ttft", count) for count in (1, 2))
    text = one["prompt_tokens"] - image
    assert two["prompt_tokens"] - 2 * image == pytest.approx(text, abs=2)
    assert two["flops"] > 1.8 * one["flops"]
    flood = workload.run("flood", 3)
    assert flood["requests"] == 3
    assert flood["prompt_tokens"] == pytest.approx(3 * one["prompt_tokens"], abs=6)
    decoding = workload.run("decode", 2)
    # The first token of each request comes with its prompt.
    assert 0 < decoding["generated"] <= 2 * (TINY.tokens - 1)
    assert decoding["bytes"] > 0
    for row in (one, two, flood, decoding):
        assert row["engine_s"] > 0


@needs_vllm
@pytest.mark.engine
@pytest.mark.filterwarnings("default")
def test_an_engines_process_answers_each_question(
    workload: Workload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without starting another engine: the process is this one."""
    vora = engines.ENGINES[0]
    path = engines.build(vora, tmp_path, rehearse=True)
    monkeypatch.setattr(worker, "start", lambda specification: None)
    monkeypatch.setattr(worker, "Workload", lambda *_: workload)
    questions = [
        json.dumps({"kind": "ttft", "count": 1, "turn": 0, "last": False}),
        json.dumps({"kind": "ttft", "count": 99, "turn": 0, "last": True}),
    ]
    found: list[Row] = []
    worker.serve(engines.specification(vora, path, rehearse=True), questions, found.append)
    start, good, bad, memory = found
    assert start["kind"] == "start"
    assert good["turn"] == 0
    assert good["engine_s"] > 0
    assert "\n" not in bad["error"]
    assert memory == {"kind": "memory"}


def fill(folder: Path) -> None:
    """Files of a run, with made-up numbers."""
    about = {
        "machine": {
            "gpus": ["NVIDIA Example, 80 GB"],
            "processor": "cpu",
            "cores": 2,
            "python": "3",
        },
        "versions": {"vllm": "0.32.0"},
        "date": "2026-01-01",
        "rehearsal": False,
    }
    (folder / "about.json").write_text(json.dumps(about))

    def section(name: str, *rows: Row) -> None:
        record = Record(folder, name, 10)
        for row in rows:
            record.add(row)
        record.end("complete")

    section(
        "floors",
        {"rate": "bf16", "shape": "a", "per_second": 4e14},
        {"rate": "bf16", "shape": "b", "per_second": 5e14},
        {"rate": "bytes", "shape": "c", "per_second": 2e12},
    )
    timed = {"kind": "time", "kernel": "K", "prompts": 1, "image": 256, "causal_s": 1e-4}
    section(
        "kernels",
        {"kind": "check", "kernel": "K", "good": True, "said": "off by little"},
        timed | {"spans_s": 1.5e-4, "flops": 2.5e10},
        {"kind": "embedder", "merge": 2, "images": 1, "side": 448, "seconds": 1e-5, "flops": 1e9},
    )
    rows: list[Row] = [
        {"engine": "VoRA", "kind": "start", "seconds": 40.0},
        {"engine": "LLaVA", "kind": "start", "error": "it was not up in time"},
    ]
    for turn, slow in ((0, 1.0), (1, 2.0)):
        for name, factor in (("VoRA", 1.0), ("VoRA, image rows skipped", 0.9)):
            seconds = 0.02 * slow * factor
            rows.append(
                {"engine": name, "kind": "ttft", "count": 1, "turn": turn, "engine_s": seconds}
                | {"host_s": 0.003, "host_cpu_s": 0.003, "flops": 5e12, "requests": 1}
            )
            rows.append(
                {"engine": name, "kind": "decode", "count": 32, "turn": turn, "engine_s": seconds}
                | {"generated": 640, "flops": 1e12, "bytes": 2e10}
            )
    section("engines", *rows)
    section("saturation", rows[2] | {"kind": "flood", "requests": 4})
    form = {"tokens_per_second": 1000.0, "tflops": 50.0}
    section(
        "training-0.5b",
        {"size": "0.5b", "naive": form, "ours": form | {"tflops": 250.0}, "times_as_fast": 5.0},
    )


def test_the_report(tmp_path: Path) -> None:
    fill(tmp_path)
    report = write_report(tmp_path).read_text()
    # Floors: 2.5e10 operations at 5e14 a second are 50 µs; 2e10 bytes at 2e12 a second are 10 ms.
    assert "| 1 x 256 | K | 100 | 150 | 1.5 | 50 | 3 |" in report
    assert "| 1 x 448 px | patch embedder, merge 2 | – | 10 | – | 2 | 5 |" in report
    assert "| 1 | VoRA | 30 (20–40) | 3 (3–3) | – | 10 | 3 |" in report
    skipped = "| 1 | VoRA, image rows skipped | 27 (18–36) | 3 (3–3) | 0.9 (0.9–0.9) | 10 | 2.7 |"
    assert skipped in report
    assert "is **faster in every pair: make it the default**" in report
    assert "| 32 | VoRA | 24,000 (16,000–32,000) | – | 10 | 3 |" in report
    assert "- **LLaVA** did not start: it was not up in time" in report
    assert "| 0.5b | FlexAttention, packed | 1,000 | 250 | 50 | – | 5 |" in report
    for name in ("kernels", "ttft", "decode"):
        assert f"({name}.svg)" in report
        assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")


def test_the_report_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.gpu.plots", None)
    fill(tmp_path)
    report = write_report(tmp_path).read_text()
    assert "| 1 x 256 | K | 100 | 150 | 1.5 | 50 | 3 |" in report
    assert ".svg" not in report


def test_the_report_of_a_run_that_measured_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in [section.name for section in SECTIONS]:
        (tmp_path / f"{name}.json").unlink(missing_ok=True)
    assert "NVIDIA Example" in write_report(tmp_path).read_text()


def test_pairs_are_of_the_same_turn() -> None:
    """Control of the ratio: medians of each side would give another."""
    rows = [
        {"engine": name, "kind": "ttft", "count": 1, "turn": turn, "engine_s": seconds}
        for name, times in (("a", (1.0, 10.0, 100.0)), ("b", (2.0, 5.0, 300.0)))
        for turn, seconds in enumerate(times)
    ]
    first, second = results(rows)
    ratio = second.over(first)
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 0.5, 3.0)


@needs_vllm
@pytest.mark.engine
@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--rehearse", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    report = (tmp_path / "report.md").read_text()
    for section in sections.SECTIONS:
        assert f"| {section.name} |" in report
    for name in ("VoRA", "LLaVA", "VoRA, merge 2"):
        assert f"- {name}: ready after" in report
        assert f"| {TINY.images[-1]} | {name} |" in report
    assert "**WRONG**" not in report
