"""The end of a run: its checkpoint, written by one process from what all of them hold."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor

from model_plugin import CheckpointError, ConfigError, VoRAError, VoRAForCausalLM
from vora_serve.training.state import RunState

Tensors = Iterator[tuple[str, torch.Tensor]]
CHECKPOINTS = "checkpoints"


def export(
    tensors: Tensors,
    write: Callable[[Tensors], object],
    *,
    sharded: bool,
) -> None:
    """Write a checkpoint from one process, out of what all of them hold.

    Args:
        tensors: of the checkpoint; every process has them, or its shards of them.
        write: writes them; called on the main process.
        sharded: whether making a tensor whole takes every process.

    Raises:
        CheckpointError: it could not be written; raised on every process.
    """
    failure: Exception | None = None
    process = PartialState()
    whole = _gathered(tensors)
    if process.is_main_process:
        try:
            write(whole)
        except (VoRAError, OSError, RuntimeError) as error:
            failure = error
    if sharded:
        for _ in whole:  # what the main process left, or all of them
            pass
    failed = [failure is not None]
    if process.num_processes > 1:
        failed = gather_object(failed)
    if failure is not None:
        raise CheckpointError(_sentence(failure)) from failure
    if any(failed):
        raise CheckpointError("The main process could not write the checkpoint.")


def finish(state: RunState, write: Callable[[], None]) -> None:
    """Write a run's result, and only then drop its state.

    Args:
        state: the run's.
        write: writes the result.

    Raises:
        CheckpointError: it could not be written; what was computed is kept as a state.
    """
    try:
        write()
    except VoRAError as error:
        try:
            state.keep_final()
        except CheckpointError as second:
            raise CheckpointError(f"{error} {second} {state.last()}") from error
        raise CheckpointError(f"{error} {state.last()}") from error
    if state.accelerator.is_main_process:
        state.remove()


def check_output(out: Path, overwrite: bool, *, run: Path | None = None, source: str = "") -> None:
    """See, before anything is computed, that a result can be written.

    Args:
        out: folder of the result.
        overwrite: whether it may exist.
        run: folder of the run.
        source: the model that the result is made from, which it must not replace.

    Raises:
        ConfigError: it cannot; the sentence says why.
    """
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already; say --overwrite to replace it.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; the result is a folder.")
    here = out.resolve()
    if source and Path(source).exists() and Path(source).resolve().is_relative_to(here):
        raise ConfigError(f"{out} would replace the model that it is made from, {source}.")
    if run is not None and run.resolve().is_relative_to(here):
        raise ConfigError(f"{out} would replace the folder of its own run, {run}.")
    for folder in (out.parent, run):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written to: {error.strerror}.") from error


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


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].endswith(".") else f"{lines[0]}."
