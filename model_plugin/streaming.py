"""Safetensors files read and written a tensor at a time, with one tensor in memory.

The library maps files into memory, which counts as resident, and gathers a file's tensors before it
writes them; merging a 7B model under a few gibibytes needs neither.
"""

import json
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from model_plugin.errors import CheckpointError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ENTRY_BYTES = 96  # of a header's entry, beside the name


class TensorReader:
    """A safetensors file.

    Args:
        file: the file.

    Raises:
        CheckpointError: it is no safetensors file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.descriptor = os.open(file, os.O_RDONLY)
        try:
            (length,) = struct.unpack("<Q", os.pread(self.descriptor, 8, 0))
            header = json.loads(os.pread(self.descriptor, length, 8))
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            os.close(self.descriptor)
            raise CheckpointError(f"{file} is no safetensors file.") from error
        header.pop("__metadata__", None)
        self.entries: dict[str, dict[str, Any]] = header
        self.start = 8 + length

    def read(self, name: str, rows: range | None = None) -> torch.Tensor:
        """A tensor, or some of its first dimension, in memory of its own.

        Args:
            name: of the tensor.
            rows: consecutive rows; all when None.

        Raises:
            CheckpointError: the file breaks off.
        """
        entry = self.entries[name]
        first, last = entry["data_offsets"]
        shape = list(entry["shape"])
        if rows is not None:
            row = (last - first) // shape[0] if shape[0] else 0
            first, last = first + rows.start * row, first + rows.stop * row
            shape[0] = len(rows)
        buffer = bytearray(last - first)
        view, done = memoryview(buffer), 0
        while done < len(buffer):
            got = os.preadv(self.descriptor, [view[done:]], self.start + first + done)
            if not got:
                raise CheckpointError(f"{self.file} breaks off in the tensor {name}.")
            done += got
        dtype = _DTYPES[entry["dtype"]]
        if not buffer:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(buffer, dtype=dtype).view(shape)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


class TensorWriter:
    """A safetensors file that grows tensor by tensor; its header is written last, in room kept.

    Args:
        file: to make.
        names: of all tensors that may come, to keep room for.
    """

    def __init__(self, file: Path, names: list[str]) -> None:
        self.room = sum(_ENTRY_BYTES + len(name) for name in names) + 256
        self.room += -(8 + self.room) % 64  # tensors begin aligned
        self.header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.size = 0
        self.stream = file.open("wb")
        self.stream.seek(8 + self.room)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append a tensor.

        Raises:
            CheckpointError: safetensors has no such dtype.
            OSError: the disk is full.
        """
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"The tensor {name} is {tensor.dtype}, which cannot be written.")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        end = self.size + flat.numel() * flat.element_size()
        self.header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self.size, end],
        }
        if flat.numel():
            self.stream.write(flat.view(torch.uint8).numpy().data)
        self.size = end

    def close(self) -> None:
        """Write the header."""
        header = json.dumps(self.header, separators=(",", ":")).encode()
        if len(header) > self.room:
            raise CheckpointError("The header of a weight file outgrew the room kept for it.")
        self.stream.seek(0)
        self.stream.write(struct.pack("<Q", self.room) + header.ljust(self.room))
        self.stream.close()

    def abandon(self) -> None:
        """Close without a header."""
        self.stream.close()
