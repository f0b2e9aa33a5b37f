"""Which LLM a checkpoint holds: one hash of all its tensors, the same in every layout and dtype.

A vision adapter belongs to one LLM. Names differ between an LLM's own checkpoint (``model.*``) and
a VoRA checkpoint (``llm.model.*``), and training may store in float32 what came in bfloat16; values
do not differ. So values are hashed as float32, of which bfloat16 is the upper half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from vora_core.checkpoint import weight_files
from vora_core.errors import CheckpointError
from vora_core.layout import part_of
from vora_core.safetensors_io import SafetensorsReader

_CHUNK_BYTES = 1 << 24
_HEAD = "lm_head.weight"
#: Buffers that old checkpoints carry and that are computed anyway.
_BUFFER = "rotary_emb.inv_freq"


def llm_digest(folder: Path, config: Mapping[str, Any]) -> str:
    """The hash of an LLM's tensors.

    Args:
        folder: an LLM's checkpoint, or a VoRA checkpoint of any layout, in safetensors files. LoRA
            factors, embedder and distillation heads do not count.
        config: the contents of its ``config.json``; an output matrix that is tied to the token
            embedding does not count.

    Returns:
        64 hexadecimal digits.

    Raises:
        CheckpointError: a file is missing or damaged, or not a safetensors file.
    """
    tied = bool(config.get("tie_word_embeddings"))
    lines = []
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            raise CheckpointError(f"{folder} holds no safetensors files.")
        with SafetensorsReader(file) as reader:
            for name, entry in reader.entries.items():
                plain = llm_name(name)
                if plain is None or (tied and plain == _HEAD):
                    continue
                lines.append(f"{plain} {list(entry.shape)} {_values(reader, name)}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def llm_name(name: str) -> str | None:
    """A tensor's name in the LLM's own checkpoint; None for what does not belong to the LLM."""
    if name.endswith(_BUFFER) or part_of(name) in ("lora", "aux", "vision"):
        return None
    return name.removeprefix("llm.")


def _values(reader: SafetensorsReader, name: str) -> str:
    """The hash of a tensor's values: upper halves, and lower ones where not all are zero."""
    import numpy as np  # here, for the commands that hash nothing

    entry = reader.entries[name]
    rows = entry.shape[0] if entry.shape else 0
    step = max(1, rows * _CHUNK_BYTES // max(1, entry.end - entry.begin))
    upper, lower, precise = hashlib.sha256(), hashlib.sha256(), False
    pieces: list[range | None] = [range(i, min(i + step, rows)) for i in range(0, rows, step)]
    for piece in pieces or [None]:
        if not prod(entry.shape):
            break
        data = reader.read(name, piece)
        if entry.dtype not in ("F32", "F16"):
            upper.update(data)
            continue
        kind = "<f4" if entry.dtype == "F32" else "<f2"
        halves = np.frombuffer(data, kind).astype("<f4", copy=False).view("<u2").reshape(-1, 2)
        upper.update(halves[:, 1].tobytes())
        lower.update(halves[:, 0].tobytes())
        precise = precise or bool(halves[:, 0].any())
    kind = "" if entry.dtype in ("F32", "F16", "BF16") else entry.dtype
    return kind + upper.hexdigest() + (lower.hexdigest() if precise else "")


def content_digest(folder: Path, names: tuple[str, ...]) -> str:
    """The hash of some files of a folder; a file that is absent counts as such.

    Args:
        folder: where they are.
        names: of the files.

    Returns:
        64 hexadecimal digits.

    Raises:
        CheckpointError: a file cannot be read.
    """
    whole = hashlib.sha256()
    for name in sorted(names):
        file = folder / name
        try:
            with file.open("rb") as stream:
                inner = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            inner = "absent"
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
        whole.update(f"{name} {inner}\n".encode())
    return whole.hexdigest()
