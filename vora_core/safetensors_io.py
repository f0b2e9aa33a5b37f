"""Safetensors files as bytes: headers, and tensors read and written one at a time.

The safetensors library maps files into memory, which counts as resident, and gathers all tensors of
a file before it writes them. Merging a 7B model within a few gibibytes allows neither, and whoever
only counts parameters needs no tensor library at all.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vora_core.errors import CheckpointError

#: Bits of a value, by the format's name of its dtype.
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8,
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64,
}  # fmt: skip
#: No header that the format allows is larger.
MAX_HEADER_BYTES = 100_000_000
_ENTRY_BYTES = 96  # of a header's entry, beside the name

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is in its file, and what it is.

    Attributes:
        dtype: the format's name, a key of ``DTYPE_BITS``.
        shape: its dimensions.
        begin, end: its bytes, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)


class SafetensorsReader:
    """A safetensors file, open for reading. Reads its header only.

    Args:
        file: the file.

    Raises:
        CheckpointError: the file cannot be opened, is not a safetensors file, or is shorter or
            longer than its header says.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be opened: {error.strerror}.") from error
        try:
            self.entries = self._read_header()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _read_header(self) -> dict[str, TensorEntry]:
        size = os.fstat(self._descriptor).st_size
        try:
            (length,) = struct.unpack("<Q", os.pread(self._descriptor, 8, 0))
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError
            header = json.loads(os.pread(self._descriptor, length, 8))
            header.pop("__metadata__", None)
            entries = {name: _entry(value) for name, value in header.items()}
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.file} is not a valid safetensors file.") from error
        self._start = 8 + length
        end = max((entry.end for entry in entries.values()), default=0)
        if self._start + end != size:
            raise CheckpointError(
                f"{self.file} has {size} bytes, but its header describes {self._start + end}: "
                "the file is damaged or incomplete."
            )
        return entries

    def read(self, name: str, rows: range | None = None) -> bytearray:
        """The bytes of a tensor, or of consecutive rows of its first dimension.

        Args:
            name: of the tensor.
            rows: which rows; all when None.

        Raises:
            CheckpointError: the file breaks off.
        """
        entry = self.entries[name]
        first, last = entry.begin, entry.end
        if rows is not None:
            row = (last - first) // entry.shape[0] if entry.shape[0] else 0
            first, last = first + rows.start * row, first + rows.stop * row
        buffer = bytearray(last - first)
        view, done = memoryview(buffer), 0
        while done < len(buffer):
            got = os.preadv(self._descriptor, [view[done:]], self._start + first + done)
            if not got:
                raise CheckpointError(f"{self.file} breaks off in the tensor {name}.")
            done += got
        return buffer

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def read_entries(file: Path) -> dict[str, TensorEntry]:
    """The header of a safetensors file.

    Raises:
        CheckpointError: as :class:`SafetensorsReader`.
    """
    with SafetensorsReader(file) as reader:
        return reader.entries


def _entry(value: dict[str, Any]) -> TensorEntry:
    begin, end = (int(offset) for offset in value["data_offsets"])
    entry = TensorEntry(value["dtype"], tuple(int(side) for side in value["shape"]), begin, end)
    bits = DTYPE_BITS[entry.dtype] * entry.count
    if min(entry.shape, default=0) < 0 or begin < 0 or 8 * (end - begin) != bits:
        raise ValueError(entry)
    return entry


class SafetensorsWriter:
    """A safetensors file that grows tensor by tensor; its header is written last, in room kept.

    Args:
        file: to make.
        names: of all tensors that may come, to keep room for.
    """

    def __init__(self, file: Path, names: Iterable[str]) -> None:
        self.size = 0
        self._room = sum(_ENTRY_BYTES + len(name.encode()) for name in names) + 256
        self._room += -(8 + self._room) % 64  # tensors begin aligned
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._stream = file.open("wb")
        self._stream.seek(8 + self._room)

    def add(self, name: str, dtype: str, shape: Iterable[int], data: Buffer) -> None:
        """Append a tensor.

        Args:
            name: of the tensor.
            dtype: the format's name, a key of ``DTYPE_BITS``.
            shape: its dimensions.
            data: its values, row-major, little-endian.

        Raises:
            CheckpointError: the bytes are not as many as shape and dtype call for.
            OSError: the disk is full.
        """
        dimensions = list(shape)
        if 8 * len(data) != DTYPE_BITS[dtype] * prod(dimensions):
            raise CheckpointError(
                f"The tensor {name} has {len(data)} bytes, which {dtype} {dimensions} does not."
            )
        end = self.size + len(data)
        self._header[name] = {
            "dtype": dtype,
            "shape": dimensions,
            "data_offsets": [self.size, end],
        }
        self._stream.write(data)
        self.size = end

    def close(self) -> None:
        """Write the header and close the file."""
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise CheckpointError("The header of a weight file outgrew the room kept for it.")
        self._stream.seek(0)
        self._stream.write(struct.pack("<Q", self._room) + header.ljust(self._room))
        self._stream.close()

    def abandon(self) -> None:
        """Close without a header."""
        self._stream.close()


class ShardWriter:
    """Weights as ``model.safetensors``, or as shards with an index where one file is not enough.

    Used as a context: leaving it without an exception writes the last header and the index.

    Args:
        folder: where to.
        names: of all tensors that may come, to keep room for in each header.
        max_shard_bytes: a new shard begins where this would be exceeded.
    """

    def __init__(self, folder: Path, names: Iterable[str], max_shard_bytes: int) -> None:
        self._folder = folder
        self._names = list(names)
        self._max_shard_bytes = max_shard_bytes
        self._shards: list[list[str]] = []
        self._writer: SafetensorsWriter | None = None
        self._total = 0

    def add(self, name: str, dtype: str, shape: Iterable[int], data: Buffer) -> None:
        """Append a tensor; see :meth:`SafetensorsWriter.add`."""
        if self._writer is not None and self._writer.size + len(data) > self._max_shard_bytes:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._writer = SafetensorsWriter(self._part(len(self._shards)), self._names)
            self._shards.append([])
        self._writer.add(name, dtype, shape, data)
        self._shards[-1].append(name)
        self._total += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            if self._writer is not None:
                self._writer.abandon()
            return
        if self._writer is not None:
            self._writer.close()
        self._take_names()

    def _take_names(self) -> None:
        if len(self._shards) == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._shards):
            file = f"model-{index + 1:05d}-of-{len(self._shards):05d}.safetensors"
            self._part(index).rename(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        contents = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(
            json.dumps(contents, indent=2) + "\n", encoding="utf-8"
        )

    def _part(self, index: int) -> Path:
        return self._folder / f"shard-{index}.tmp"
