"""Stages of the demo's training in processes of their own.

Two processes of one thread each train these small models faster than one process of two threads:
the LLM and the teacher train beside each other, and VoRA itself in processes that share a stage,
which torch's launcher starts and which give the same losses as one.
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


def run_stages(stages: list[str], recipe: DemoRecipe, run: Path) -> None:
    """Run stages that do not need each other at the same time, each in a process of its own.

    Args:
        stages: names of stages, as in :func:`main`.
        recipe: of the whole run; left in its folder as ``recipe.yaml``.
        run: folder of the run.

    Raises:
        StageError: one of them failed.
    """
    _leave(recipe, run)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, stage, str(run)],
            env=_environment(len(stages)) | {"TQDM_POSITION": str(line)},
        )
        for line, stage in enumerate(stages)
    ]
    try:
        failed = [s for s, process in zip(stages, started, strict=True) if process.wait()]
    except BaseException:
        for process in started:
            process.terminate()
        raise
    if failed:
        raise StageError(f"The stage {failed[0]} failed; what it said stands above.")


def run_shared_stage(stage: str, recipe: DemoRecipe, run: Path, processes: int) -> None:
    """Run a stage in several processes that share it.

    Args:
        stage: name of a stage, as in :func:`main`.
        recipe: of the whole run; left in its folder as ``recipe.yaml``.
        run: folder of the run.
        processes: how many share the stage.

    Raises:
        StageError: one of them failed.
    """
    _leave(recipe, run)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "-m", __name__, stage, str(run)]
    if subprocess.run(command, env=_environment(processes), check=False).returncode:
        raise StageError(f"The stage {stage} failed; what it said stands above.")


def _leave(recipe: DemoRecipe, run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    (run / _RECIPE_FILE).write_text(plain, encoding="utf-8")


def _environment(processes: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def main(stage: str, run: Path) -> None:
    """Take part in a stage."""
    from vora_serve.demo import train

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    recipe = read_demo_recipe(run / _RECIPE_FILE)
    if stage.startswith("finetune-"):
        train.finetune_native(recipe, run, int(stage.removeprefix("finetune-")))
    else:
        {
            "text": train.train_language_model,
            "teacher": train.train_vision_teacher,
            "pretrain": train.pretrain_fixed,
        }[stage](recipe, run)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
