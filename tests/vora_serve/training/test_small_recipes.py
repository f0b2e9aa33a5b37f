"""The shipped small recipes train: all of them, for a few steps, by the commands' own code."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.training.world import make_world
from model_plugin.checkpoint import Checkpoint
from vora_serve.training import run
from vora_serve.training.llava import load_llava
from vora_serve.training.recipe import read_recipe
from vora_serve.training.run_recipe import FinetuneRun, MergeRun, PretrainRun, find_recipe

SHORT = [
    "optimisation.steps=3", "optimisation.log_every=1", "held_out.every=3", "held_out.samples=8",
]  # fmt: skip
RECIPES = find_recipe("small_pretrain_i8m").parent
PRETRAIN = sorted(
    f.stem for f in RECIPES.glob("small_*.yaml") if not f.stem.startswith("small_finetune")
)
FINETUNE = sorted(f.stem for f in RECIPES.glob("small_finetune_*.yaml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the world of the small recipes in it, hardly trained."""
    folder = tmp_path_factory.mktemp("small")
    torch.set_num_threads(1)
    make_world(folder / "runs" / "world", images=160, text_steps=2, steps=2)
    return folder


def trained(out: Path) -> None:
    """See that a recipe left a whole checkpoint and finite losses, judged on held-out samples."""
    if "encoder" in str(out):
        load_llava(out)
    else:
        Checkpoint.open(out).check()
    text = (out.parent / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines if "lm" in line] == [1, 2, 3]
    assert all(math.isfinite(line["lm"]) for line in lines if "lm" in line)
    assert any("held_out_accuracy" in line for line in lines)


@pytest.mark.slow
def test_every_small_recipe_trains(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    assert len(PRETRAIN) == 11
    assert len(FINETUNE) == 10
    for name in PRETRAIN:
        recipe = read_recipe(PretrainRun, RECIPES / f"{name}.yaml", SHORT)
        trained(run.run_pretrain(recipe))
        base = Path(recipe.out).parent
        if recipe.trains == "lora":
            merge = MergeRun(source=f"{base}/checkpoint", out=f"{base}/merged")
            assert list(run.run_merge(merge))
    for name in FINETUNE:
        recipe = read_recipe(FinetuneRun, RECIPES / f"{name}.yaml", SHORT)
        trained(run.run_finetune(recipe))
