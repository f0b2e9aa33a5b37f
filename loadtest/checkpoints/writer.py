"""Random weights streamed to disk in bfloat16, a file at a time, whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vora_core.errors import ConfigError
from vora_core.safetensors_io import ShardWriter

Dims = tuple[int, ...]

_POOL = 1 << 22
MAX_SHARD_BYTES = 1 << 30


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, as uint16 bit patterns of the same shape."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class RandomTensors:
    """Bit patterns of random bfloat16 tensors, the same for the same seed and order of calls.

    Normal values come from one pool of four million, read from a random place: latency does not
    depend on their values, and 7B of them would otherwise take minutes.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._pool = self._random.standard_normal(_POOL, dtype=np.float32)
        self._scaled: dict[float, np.ndarray] = {}

    def normal(self, count: int, spread: float) -> np.ndarray:
        """``count`` values of that standard deviation."""
        if spread not in self._scaled:
            self._scaled[spread] = to_bfloat16(self._pool * spread)
        start = int(self._random.integers(_POOL))
        pool = self._scaled[spread]
        return np.resize(np.concatenate((pool[start:], pool[:start])), count)

    def of(self, name: str, dims: Dims) -> np.ndarray:
        """What fits a parameter of that name: ones for norms, zeros for biases, else normal."""
        count = int(np.prod(dims))
        last = name.rsplit(".", 2)
        if last[-1] == "bias":
            return np.zeros(count, np.uint16)
        if "norm" in last[-2]:
            return to_bfloat16(np.ones(count, np.float32))
        return self.normal(count, 0.02)


@contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes the name ``out`` when the block ends well.

    Raises:
        ConfigError: ``out`` exists and may not be replaced.
    """
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already; give --overwrite to replace it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield work
        work.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def write_weights(
    folder: Path,
    shapes: Iterable[tuple[str, Dims]],
    seed: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    sparse: bool = False,
) -> int:
    """Write random weights as safetensors, with an index where several files are needed.

    Args:
        folder: where to.
        shapes: name and dimensions of every tensor.
        seed: decides the values.
        max_shard_bytes: a file ends before it would be exceeded.
        sparse: one file of zeros that takes no room on disk, for engines that make up weights.

    Returns:
        Number of parameters.
    """
    named = list(shapes)
    if sparse:
        _write_sparse(folder / "model.safetensors", named)
        return sum(math.prod(dims) for _, dims in named)
    values = RandomTensors(seed)
    with ShardWriter(folder, [name for name, _ in named], max_shard_bytes) as writer:
        for name, dims in named:
            writer.add(name, "BF16", dims, values.of(name, dims).tobytes())
    return sum(math.prod(dims) for _, dims in named)


def _write_sparse(file: Path, named: Iterable[tuple[str, Dims]]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, dims in named:
        begin, end = end, end + 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(stream.tell() + end)
