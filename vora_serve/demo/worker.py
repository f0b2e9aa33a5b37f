"""One process of a stage of the demo's training: ``python -m vora_serve.demo.worker STAGE RUN``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import transformers

from vora_serve.demo import train
from vora_serve.demo.recipe import read_demo_recipe
from vora_serve.demo.stage import RUN_RECIPE


def main(stage: str, run: Path) -> None:
    """Take part in a stage."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    recipe = read_demo_recipe(run / RUN_RECIPE)
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
