"""DeepSpeed's ZeRO, stage 1: optimizer states sharded; weights and gradients whole everywhere.

Stage 2 adds gradients up in the order in which backward passes make them, and takes it for granted
that this is the same everywhere; it is not where one process's micro-batch has no image. (Seen: the
norm came out wrong in such a step, and right under stage 1.) Stage 1 adds them up in the order of
the parameters, once a step. Stage 3 would shard the weights as well; FSDP2 does that without a
further library.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from model_plugin import CheckpointError, ConfigError
from vora_serve.training.data import Batch
from vora_serve.training.recipe import Optimisation
from vora_serve.training.step import TrainingModel

_TAG = "zero"


class ZeRO:
    """See :class:`vora_serve.training.parallel.Strategy`.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """

    def __init__(
        self, module: TrainingModel, settings: Optimisation, accelerator: Accelerator
    ) -> None:
        try:
            import deepspeed  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "optimisation.sharding zero1 needs DeepSpeed: pip install 'vora-serve[deepspeed]'."
            ) from error
        self.module, self.settings = module, settings
        self.processes = accelerator.num_processes
        self.optimizers: list[torch.optim.Optimizer] = []

    def attach(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """See :class:`vora_serve.training.parallel.Strategy`."""
        import deepspeed

        settings, self.optimizers = self.settings, optimizers
        micro = settings.micro_batch_size or settings.batch_size // self.processes
        self.engine, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=optimizers[0],
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": micro,
                # A step ends where this run says so, not after a fixed number of backward passes.
                "managed_gradient_accumulation": False,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": settings.max_grad_norm,
                "zero_optimization": {"stage": 1},
                "zero_allow_untested_optimizer": True,
            },
        )

    def forward(self, batch: Batch, *, last: bool) -> dict[str, torch.Tensor]:
        """See :class:`vora_serve.training.parallel.Strategy`."""
        losses: dict[str, torch.Tensor] = self.engine(batch)
        return losses

    def backward(self, loss: torch.Tensor) -> None:
        """See :class:`vora_serve.training.parallel.Strategy`."""
        # Gradients are averaged over processes, where a sum is wanted.
        self.engine.backward(loss * self.processes)

    def step(self, *, usable: bool) -> tuple[float, bool]:
        """See :class:`vora_serve.training.parallel.Strategy`."""
        # DeepSpeed clips, and drops by itself gradients whose norm is not finite.
        if not usable:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.nan)
        self.engine.step()
        if self.engine.optimizer.overflow:
            return math.nan, False
        return float(self.engine.get_global_grad_norm()), True

    def save(self, folder: Path) -> dict[str, Any]:
        """See :class:`vora_serve.training.parallel.Strategy`."""
        self.engine.save_checkpoint(
            str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
        )
        return {}

    def load(self, folder: Path, saved: Mapping[str, Any]) -> None:
        """See :class:`vora_serve.training.parallel.Strategy`.

        Raises:
            CheckpointError: it is not there or of another model.
        """
        found, _ = self.engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        if found is None:
            raise CheckpointError(f"{folder} holds no training state.")
