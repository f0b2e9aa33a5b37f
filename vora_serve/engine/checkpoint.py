"""Whether a path holds a checkpoint that can be served: read from its headers, in milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vora_core.adapter import open_base
from vora_core.checkpoint import CheckpointHeader, weight_files
from vora_core.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ServedCheckpoint:
    """A checkpoint that looks servable."""

    location: str
    """Directory or hub id, as the engine gets it."""
    name: str
    """The name it is served under by default."""
    local: bool


def check_checkpoint(model: str, *, host: bool = False) -> ServedCheckpoint:
    """Look at a checkpoint before an engine is started for it.

    Args:
        model: A directory, or a hub id such as ``org/name``.
        host: Whether it is a plain LLM, for vision adapters beside it.

    Raises:
        CheckpointError: it is missing, of another kind, or has no weights or tokenizer.
    """
    path = Path(model).expanduser()
    if not path.exists():
        if _HUB_ID.fullmatch(model):
            return ServedCheckpoint(model, model, local=False)
        raise CheckpointError(f"The model path {model} does not exist.")
    if not path.is_dir():
        raise CheckpointError(f"The model path {model} is not a directory.")
    if host:
        header = open_base(path)
    else:
        header = CheckpointHeader.open(path)
        header.require_vora()
    weight_files(path)
    if not header.has_tokenizer:
        raise CheckpointError(f"{model} has no tokenizer.")
    resolved = path.resolve()
    return ServedCheckpoint(str(resolved), resolved.name, local=True)
