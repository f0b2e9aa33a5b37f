"""Run by torchrun: a short pretraining of the tests' tiny model, by as many processes as there are.

python -m torch.distributed.run --nproc_per_node N -m tests.vora_serve.training.parallel_run FOLDER
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from tests.vora_serve.training import world
from vora_serve.training import Optimisation, PretrainRecipe, pretrain


def main(folder: Path) -> None:
    """Pretrain into ``folder``."""
    torch.set_num_threads(1)
    settings = Optimisation(
        steps=6, batch_size=8, micro_batch_size=2, lr=3e-3, log_every=1, save_every=4
    )
    pretrain(
        world.model(),
        world.processor(),
        world.teacher(),
        world.Colours(),
        PretrainRecipe(optimisation=settings, lora_rank=8, max_length=200),
        folder,
        folder / "pretrained",
    )
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
