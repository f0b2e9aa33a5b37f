"""The end of a run: its checkpoint, written by one process from what all of them hold."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.tensor import DTensor

from model_plugin import VoRAForCausalLM
from vora_serve.training.state import RunState


def export(
    state: RunState,
    tensors: Iterator[tuple[str, torch.Tensor]],
    write: Callable[[Iterator[tuple[str, torch.Tensor]]], object],
) -> None:
    """Write a checkpoint from one process, and only then drop the run's state.

    Args:
        state: the run's.
        tensors: of the checkpoint; every process has them, or its shards of them.
        write: writes them; called on the main process.
    """
    if state.settings.sharding != "none":
        whole = _gathered(tensors)
        if state.accelerator.is_main_process:
            write(whole)
        else:
            for _ in whole:
                pass
        state.accelerator.wait_for_everyone()
    else:
        with main_process_first() as writes:
            if writes:
                write(tensors)
    if state.accelerator.is_main_process:
        state.remove()


def pretraining_tensors(
    model: VoRAForCausalLM, heads: nn.Module | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a model with LoRA, and of its heads, as the released layout names them."""
    for name, tensor in model.state_dict().items():
        yield name.replace(".base_layer.", ".").replace(".default.", "."), tensor
    for name, tensor in heads.state_dict().items() if heads is not None else ():
        yield f"aux_vision.{name}", tensor


def _gathered(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors made whole, one at a time; every process must go through all of them."""
    for name, tensor in tensors:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        yield name, whole.detach()


@contextmanager
def main_process_first() -> Iterator[bool]:
    """Let one process write what all have; the others wait. Yields whether this one writes."""
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        yield state.is_main_process
