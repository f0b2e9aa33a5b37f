"""One stage of the demo's training, in one of several processes that share it.

``vora-serve demo train`` starts it through torch's launcher: two processes of one thread each train
these small models faster than one process of two threads, and give the same losses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import transformers
import yaml

from model_plugin import VoRAError
from vora_serve.demo.recipe import DemoRecipe, read_demo_recipe

_RECIPE_FILE = "recipe.yaml"


class StageError(VoRAError, RuntimeError):
    """A stage's processes ended with an error, which they have said themselves."""


def run_stage(stage: str, recipe: DemoRecipe, run: Path, processes: int) -> None:
    """Run a stage of :mod:`vora_serve.demo.train` in processes of its own.

    Args:
        stage: ``pretrain``, ``finetune`` or ``refine``.
        recipe: of the whole run; left in its folder as ``recipe.yaml``.
        run: folder of the run.
        processes: how many share the stage.

    Raises:
        StageError: one of them failed.
    """
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    (run / _RECIPE_FILE).write_text(plain, encoding="utf-8")
    threads = max(1, (os.cpu_count() or 1) // processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "-m", __name__, stage, str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if subprocess.run(command, env=environment, check=False).returncode:
        raise StageError(f"The stage {stage} failed; what it said stands above.")


def main(stage: str, run: Path) -> None:
    """Take part in a stage."""
    from vora_serve.demo import train

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    recipe = read_demo_recipe(run / _RECIPE_FILE)
    {
        "pretrain": train.pretrain_fixed,
        "finetune": train.finetune_native,
        "refine": train.refine,
    }[stage](recipe, run)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
