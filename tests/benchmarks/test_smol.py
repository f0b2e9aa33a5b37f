"""The run on SmolLM2: its pieces, texts, arithmetic and recipe; and the whole of it in small."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.smol import parts, report
from benchmarks.smol.evaluate import evaluate
from benchmarks.smol.merge import merge
from benchmarks.smol.parts import find_parts, join_parts, write_parts
from benchmarks.smol.run import Run, RunError, read_metrics
from benchmarks.smol.sizes import SIZES, pretrain_recipe
from benchmarks.smol.texts import prompts
from tests.import_rules import ROOT
from tests.vora_serve.world.emoji import fake_package
from vora_core.errors import CheckpointError, ConfigError
from vora_serve.training.recipe import parse_recipe
from vora_serve.training.run_recipe import PretrainRun
from vora_serve.world.suite import GROUPS
from vora_serve.world.wide import FAMILIES


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(range(256)) * 200)
    (folder / "vision_adapter.json").write_text("{}")
    return folder


def test_pieces_are_small_and_give_the_adapter_again(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PIECE", 20_000)
    out = tmp_path / "out"
    out.mkdir()
    pieces = write_parts(adapter, out)
    assert len(pieces) > 2
    assert max(piece.stat().st_size for piece in pieces) <= 20_000
    joined = join_parts(out, tmp_path / "joined")
    for file in adapter.iterdir():
        assert (joined / file.name).read_bytes() == file.read_bytes()
    (adapter / "weights").write_bytes(b"less")
    assert len(write_parts(adapter, out)) == 1
    assert find_parts(out) == [out / "adapter.tar.00"], "pieces of the earlier one are gone"


def test_damaged_pieces_and_large_adapters_are_refused(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PIECE", 20_000)
    with pytest.raises(CheckpointError, match="no adapter"):
        join_parts(tmp_path, tmp_path / "joined")
    pieces = write_parts(adapter, tmp_path)
    pieces[1].unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        join_parts(tmp_path, tmp_path / "joined")
    monkeypatch.setattr(parts, "TOTAL", 20_000)
    with pytest.raises(CheckpointError, match="20,000 are allowed"):
        write_parts(adapter, tmp_path)


def test_without_an_adapter_nothing_is_merged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"None comes with vora-serve yet.*eight minutes"):
        list(merge(tmp_path, tmp_path / "work"))
    assert not (tmp_path / "work").exists()
    (tmp_path / "adapter.tar.00").write_bytes(b"no tar")
    with pytest.raises(CheckpointError, match=r"is damaged: [^\n]+\.$"):
        list(merge(tmp_path, tmp_path / "work"))
    assert not (tmp_path / "work" / "base").exists(), "refused before the LLM is imported"


def test_make_says_what_is_missing_before_it_installs_anything(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "demo", "MODEL=smol", f"ADAPTER={tmp_path}", "INSTALL=false"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"there is no vision adapter for SmolLM2 in {tmp_path}" in done.stderr
    assert "python -m benchmarks.smol train" in done.stderr
    done = subprocess.run(
        ["make", "demo", "MODEL=large", "INSTALL=false"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "MODEL must be tiny or smol, not 'large'" in done.stderr


@pytest.mark.parametrize("name", SIZES)
def test_recipes_are_read(name: str, tmp_path: Path) -> None:
    emoji = fake_package(tmp_path / "emoji")
    plain = pretrain_recipe(
        SIZES[name], base="b", teacher="t", texts="x.jsonl", emoji=str(emoji), blocks=30,
        steps=400, run="r",
    )  # fmt: skip
    recipe = parse_recipe(PretrainRun, plain)
    assert recipe.n_vit == 30  # LoRA in all blocks
    assert recipe.data.pack
    assert recipe.held_out is not None
    assert recipe.held_out.sources[0].split == "test"
    assert recipe.optimisation.batch_size % recipe.data.shards == 0


def test_prompts_are_many_and_always_the_same() -> None:
    first = list(itertools.islice(prompts("smollm2", ["red apple"]), 800))
    assert first == list(itertools.islice(prompts("smollm2", ["red apple"]), 800))
    assert len(set(first)) > 600
    assert any("red apple" in prompt for prompt in first)
    tiny = list(itertools.islice(prompts("tiny", []), 5))
    assert all("There " in prompt for prompt in tiny), "scenes in words"


SUMMARY: dict[str, Any] = {
    "parameters": {"LLM": 110, "LoRA": 10, "embedder": 2, "auxiliary heads": 1, "teacher": 5},
    "looked_up": 10,
    "image_tokens": 4,
    "processes": 2,
}


def test_operations_and_rates() -> None:
    assert report.flops_per_token(SUMMARY) == (4 * 100 + 6 * 10, 6 * 3 + 2 * 5)
    slow = {"tokens": 100, "tokens_per_second": 1.0, "images": 9}
    line = {"tokens": 100, "tokens_per_second": 50.0, "images": 3}
    rates = report.throughput(SUMMARY, [slow, slow, line, line])  # the second half counts
    assert rates["tokens"] == pytest.approx(100)  # of two processes
    assert rates["images"] == pytest.approx(1.5)
    assert rates["tflops"] == pytest.approx((460 * 100 + 28 * 1.5 * 4) / 1e12)


def test_a_run_that_was_stopped_before_its_first_step_has_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    run = Run(SIZES["rehearsal"], tmp_path, tmp_path, tmp_path, 0.0)
    with pytest.raises(RunError, match="time was up"):
        run._speed(tmp_path)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_a_run_in_small_brings_an_adapter_home_that_is_merged_and_served(tmp_path: Path) -> None:
    emoji = fake_package(tmp_path / "emoji")
    size = dataclasses.replace(
        SIZES["rehearsal"], base_steps=40, teacher_steps=3, teacher_images=64, texts=64,
        held_out=8, processes=1, reserve_s=1.0,
    )  # fmt: skip
    work, out = tmp_path / "work", tmp_path / "out"
    with pytest.raises(RunError, match=r"time was up|too few"):
        Run(size, work, out, emoji, time.monotonic() + 1).do()
    # What was made is not made again. Steps end it: a busy machine needs longer for them, no more.
    Run(size, work, out, emoji, time.monotonic() + 1500, most_steps=12).do()
    assert json.loads((out / "summary.json").read_text())["steps"] == 12
    assert sum(piece.stat().st_size for piece in find_parts(out)) < parts.TOTAL
    evaluate(work, out, emoji, 2)
    found = json.loads((out / "served.json").read_text())
    assert found["text"]["base"]["agreement"] > 0.99, "its own answers"
    assert found["text"]["merged"]["perplexity"] == pytest.approx(
        found["text"]["adapter"]["perplexity"], rel=0.02
    )
    groups = {row["group"] for row in found["groups"]}
    assert groups == {*GROUPS, *(set(FAMILIES) - {"count"}), "count, emoji"}
    assert all(row["questions"] == 2 for row in found["groups"])
    text = report.write_report(out, "rehearsal", tmp_path / "page.md")
    assert "| **all** |" in text
    assert "Held-out answers right" in text
