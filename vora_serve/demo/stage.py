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

import yaml

from model_plugin import VoRAError
from vora_serve.demo.recipe import DemoRecipe

#: The recipe of a run, in its folder.
RUN_RECIPE = "recipe.yaml"
_WORKER = "vora_serve.demo.worker"


class StageError(VoRAError, RuntimeError):
    """A stage's processes ended with an error, which they have said themselves."""


def run_stages(stages: list[str], recipe: DemoRecipe, run: Path) -> None:
    """Run stages that do not need each other at the same time, each in a process of its own.

    Args:
        stages: names of stages, as in :mod:`vora_serve.demo.worker`.
        recipe: of the whole run; left in its folder as ``recipe.yaml``.
        run: folder of the run.

    Raises:
        StageError: one of them failed.
    """
    _leave(recipe, run)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", _WORKER, stage, str(run)],
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
        raise StageError(f"The stage {failed[0]} failed; its message is above.")


def run_shared_stage(stage: str, recipe: DemoRecipe, run: Path, processes: int) -> None:
    """Run a stage in several processes that share it.

    Args:
        stage: name of a stage, as in :mod:`vora_serve.demo.worker`.
        recipe: of the whole run; left in its folder as ``recipe.yaml``.
        run: folder of the run.
        processes: how many share the stage.

    Raises:
        StageError: one of them failed.
    """
    _leave(recipe, run)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(processes), "-m", _WORKER, stage, str(run)]
    if subprocess.run(command, env=_environment(processes), check=False).returncode:
        raise StageError(f"The stage {stage} failed; its message is above.")


def _leave(recipe: DemoRecipe, run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    (run / RUN_RECIPE).write_text(plain, encoding="utf-8")


def _environment(processes: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}
