"""Many processes: what is dealt out with fully_shard (FSDP2), and how it comes together again.

Launched by ``torchrun`` or ``accelerate launch``. DistributedDataParallel needs nothing from here.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from model_plugin import ConfigError
from vora_serve.training.recipe import Optimisation
from vora_serve.training.step import TrainingModel


def shard(module: TrainingModel, settings: Optimisation, device: torch.device) -> None:
    """Deal a model's weights out to all processes, block by block, in place.

    A block's weights are gathered for its forward and backward pass and let go again; gradients and
    optimizer states stay dealt out. The teacher is whole everywhere.

    Raises:
        ConfigError: there is one process, or the optimizer needs whole matrices.
    """
    if not dist.is_initialized():
        raise ConfigError(
            "optimisation.sharding needs several processes; start them with torchrun or "
            "accelerate launch."
        )
    if settings.optimizer != "adamw":
        raise ConfigError("optimisation.sharding works with the optimizer adamw only.")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in module.model.llm.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def gathered(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors made whole, one at a time; every process must go through all of them."""
    for name, tensor in tensors:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        yield name, whole.detach()


def scalar(value: torch.Tensor) -> float:
    """A number, whether it is dealt out or not."""
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
