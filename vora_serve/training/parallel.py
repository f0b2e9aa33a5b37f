"""Many processes: how the gradients of micro-batches become one step of all of them.

Launched by ``torchrun`` or ``accelerate launch``. Three ways, which give the same losses: every
process has everything (one alone, or DistributedDataParallel); fully_shard (FSDP2) shards weights,
gradients and optimizer states; DeepSpeed's ZeRO shards the optimizer states.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from model_plugin import CheckpointError, ConfigError
from vora_serve.training.data import Batch
from vora_serve.training.optim import make_optimizers
from vora_serve.training.recipe import Optimisation
from vora_serve.training.step import TrainingModel


class Strategy(Protocol):
    """A model and its optimizers on the processes of a run.

    Attributes:
        optimizers: those whose learning rates count.
    """

    optimizers: list[torch.optim.Optimizer]

    def attach(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Take the optimizers of the model's parameters, as sharing has left them."""
        ...

    def forward(self, batch: Batch, *, last: bool) -> dict[str, torch.Tensor]:
        """The losses of a micro-batch, ``last`` of its step on this process."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's gradients. The losses of all processes add up to the step's."""
        ...

    def step(self, *, usable: bool) -> tuple[float, bool]:
        """Clip and apply the gradients, or drop them where they are not finite.

        Args:
            usable: False drops them in any case.

        Returns:
            Their norm before clipping, and whether they were applied; the same everywhere.
        """
        ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Keep what is trained, with the optimizers' states; called by every process.

        Args:
            folder: for what is sharded; made here where something is.

        Returns:
            What the main process knows besides.
        """
        ...

    def load(self, folder: Path, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`save` kept."""
        ...


def make_strategy(
    module: TrainingModel, settings: Optimisation, accelerator: Accelerator
) -> Strategy:
    """The way of sharing a run that its recipe names.

    Raises:
        ConfigError: processes, optimizer or what is installed do not allow it.
    """
    strategy = _share(module, settings, accelerator)
    strategy.attach(make_optimizers(module, settings))
    return strategy


def _share(module: TrainingModel, settings: Optimisation, accelerator: Accelerator) -> Strategy:
    if settings.sharding == "none":
        return Replicated(module, settings, accelerator)
    if accelerator.num_processes == 1:
        raise ConfigError(
            "optimisation.sharding needs several processes; start them with torchrun or "
            "accelerate launch."
        )
    if settings.optimizer != "adamw":
        raise ConfigError("optimisation.sharding works with the optimizer adamw only.")
    if settings.sharding == "fsdp2":
        return FullyShard(module, settings, accelerator)
    from vora_serve.training.zero import ZeRO

    return ZeRO(module, settings, accelerator)


class _Averaging:
    """What torch's own ways have in common: gradients are averaged while they are made."""

    def __init__(
        self, module: TrainingModel, settings: Optimisation, accelerator: Accelerator
    ) -> None:
        self.module, self.settings, self.accelerator = module, settings, accelerator
        self.optimizers: list[torch.optim.Optimizer] = []

    def attach(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """See :class:`Strategy`."""
        self.optimizers = optimizers

    def backward(self, loss: torch.Tensor) -> None:
        """See :class:`Strategy`."""
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def step(self, *, usable: bool) -> tuple[float, bool]:
        """See :class:`Strategy`."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        total = torch.nn.utils.clip_grad_norm_(trained, self.settings.max_grad_norm)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        applied = usable and math.isfinite(norm)
        for optimizer in self.optimizers:
            if applied:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm, applied


class Replicated(_Averaging):
    """Everything everywhere: one process alone, or DistributedDataParallel."""

    def __init__(
        self, module: TrainingModel, settings: Optimisation, accelerator: Accelerator
    ) -> None:
        super().__init__(module, settings, accelerator)
        self.wrapped: nn.Module = module
        if accelerator.num_processes > 1:
            self.wrapped = accelerator.prepare_model(module)

    def forward(self, batch: Batch, *, last: bool) -> dict[str, torch.Tensor]:
        """See :class:`Strategy`."""
        if isinstance(self.wrapped, DistributedDataParallel):
            # Processes add their gradients up, and wait for each other, once a step.
            self.wrapped.require_backward_grad_sync = last
        losses: dict[str, torch.Tensor] = self.wrapped(batch)
        return losses

    def save(self, folder: Path) -> dict[str, Any]:
        """See :class:`Strategy`."""
        trained = {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}
        return {"trained": trained, "optimizers": [o.state_dict() for o in self.optimizers]}

    def load(self, folder: Path, saved: Mapping[str, Any]) -> None:
        """See :class:`Strategy`.

        Raises:
            CheckpointError: it is of another model.
        """
        trained = {n for n, p in self.module.named_parameters() if p.requires_grad}
        other = trained ^ saved["trained"].keys()
        if other:
            raise CheckpointError(
                f"The saved training state belongs to another model: {min(other)} and "
                f"{len(other) - 1} more tensors are in one of them alone."
            )
        self.module.load_state_dict(saved["trained"], strict=False)
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)


class FullyShard(_Averaging):
    """Weights, gradients and optimizer states sharded block by block.

    A block's weights are gathered for its forward and backward pass and let go again. The teacher
    is whole everywhere.
    """

    def __init__(
        self, module: TrainingModel, settings: Optimisation, accelerator: Accelerator
    ) -> None:
        super().__init__(module, settings, accelerator)
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for block in module.model.llm.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)

    def forward(self, batch: Batch, *, last: bool) -> dict[str, torch.Tensor]:
        """See :class:`Strategy`."""
        losses: dict[str, torch.Tensor] = self.module(batch)
        return losses

    def save(self, folder: Path) -> dict[str, Any]:
        """See :class:`Strategy`."""
        save(self._state(), checkpoint_id=str(folder))
        return {}

    def load(self, folder: Path, saved: Mapping[str, Any]) -> None:
        """See :class:`Strategy`."""
        state = self._state()
        load(state, checkpoint_id=str(folder))
        set_state_dict(
            self.module,
            self.optimizers,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizers"],
            options=StateDictOptions(strict=False, ignore_frozen_params=True),
        )

    def _state(self) -> dict[str, Any]:
        options = StateDictOptions(ignore_frozen_params=True)
        model, optimizers = get_state_dict(self.module, self.optimizers, options=options)
        return {"model": model, "optimizers": optimizers}
