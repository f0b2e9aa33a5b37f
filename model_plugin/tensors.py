"""A checkpoint's tensors: the one reader, the one merge.

Tensors are read one at a time into memory of their own, so that a model larger than memory can be
merged, verified and exported.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from vora_core.checkpoint import weight_files, weight_map
from vora_core.errors import CheckpointError
from vora_core.layout import LORA_A, LORA_B, Shape
from vora_core.safetensors_io import SafetensorsReader, ShardWriter

TensorStream = Iterable[tuple[str, torch.Tensor]]

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


class TensorFiles:
    """The tensors of a folder's weight files, by name. Files are opened when first needed.

    Args:
        folder: of the checkpoint.

    Attributes:
        files: the file of each tensor.

    Raises:
        CheckpointError: there are no weights, or files are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[Path, SafetensorsReader | dict[str, torch.Tensor]] = {}
        mapped = weight_map(folder)
        if mapped is None:
            mapped = {n: f for f in weight_files(folder) for n in self._names(f)}
        self.files: dict[str, Path] = mapped

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each tensor."""
        return {name: self._facts(name)[0] for name in self.files}

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Dtype that each tensor is stored in, in torch's names (``bfloat16``)."""
        return {name: self._facts(name)[1] for name in self.files}

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str, rows: range | None = None) -> torch.Tensor:
        """A tensor in the dtype it is stored in, or consecutive rows of it.

        Args:
            name: of the tensor.
            rows: of its first dimension; all when None.

        Raises:
            CheckpointError: there is no such tensor, or its file breaks off.
        """
        opened = self._open_for(name)
        if isinstance(opened, dict):
            return opened[name] if rows is None else opened[name][rows.start : rows.stop]
        entry = opened.entries[name]
        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"The tensor {name} has the dtype {entry.dtype}, unknown here.")
        shape = entry.shape if rows is None else (len(rows), *entry.shape[1:])
        buffer = opened.read(name, rows)
        dtype = _DTYPES[entry.dtype]
        if not buffer:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(buffer, dtype=dtype).view(shape)

    def close(self) -> None:
        """Close all files."""
        for opened in self._opened.values():
            if isinstance(opened, SafetensorsReader):
                opened.close()
        self._opened.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _facts(self, name: str) -> tuple[Shape, str]:
        opened = self._open_for(name)
        if isinstance(opened, dict):
            return tuple(opened[name].shape), str(opened[name].dtype).removeprefix("torch.")
        entry = opened.entries[name]
        dtype = _DTYPES.get(entry.dtype)
        return entry.shape, str(dtype).removeprefix("torch.") if dtype else entry.dtype

    def _open_for(self, name: str) -> SafetensorsReader | dict[str, torch.Tensor]:
        file = self.files.get(name)
        if file is None:
            raise CheckpointError(f"{self.folder.name} has no tensor {name}.")
        opened = self._open(file)
        if name not in (opened if isinstance(opened, dict) else opened.entries):
            raise CheckpointError(f"{file} lacks the tensor {name}, which the index places there.")
        return opened

    def _open(self, file: Path) -> SafetensorsReader | dict[str, torch.Tensor]:
        if file not in self._opened:
            safe = file.suffix == ".safetensors"
            self._opened[file] = SafetensorsReader(file) if safe else _load_pickled(file)
        return self._opened[file]

    def _names(self, file: Path) -> list[str]:
        opened = self._open(file)
        return list(opened if isinstance(opened, dict) else opened.entries)


def _load_pickled(file: Path) -> dict[str, torch.Tensor]:
    """Memory-mapped tensors of a ``.bin`` file."""
    try:
        loaded: Any = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return dict(loaded)
    except Exception as error:  # torch raises what its archive and pickle readers raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} cannot be read as weights: {reason}") from error


def merge_lora(stream: TensorStream, modules: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Fold LoRA factors into their base weights: W + B A (the released scale is 1).

    The product is accumulated in float32 and returned in the dtype of W.

    Args:
        stream: tensors in any order; a weight waits in memory for its factors.
        modules: layers, without ``.weight``, that have factors.

    Yields:
        Every tensor that is not a LoRA factor, once.

    Raises:
        CheckpointError: the stream ended before a layer's weight or factors came.
    """
    waiting: dict[str, dict[str, torch.Tensor]] = {module: {} for module in modules}
    for name, tensor in stream:
        module, suffix = _split_lora(name)
        if module not in waiting:
            yield name, tensor
            continue
        triple = waiting[module]
        triple[suffix] = tensor
        del tensor
        if len(triple) == 3:
            del waiting[module]
            yield f"{module}.weight", _merged(triple)
            del triple
    if waiting:
        module = min(waiting)
        raise CheckpointError(
            f"{len(waiting)} layers lack a weight or a LoRA factor, {module} among them."
        )


def _merged(triple: dict[str, torch.Tensor]) -> torch.Tensor:
    delta = triple.pop(LORA_B).float() @ triple.pop(LORA_A).float()
    weight = triple.pop(".weight")
    return delta.add_(weight).to(weight.dtype)


def _split_lora(name: str) -> tuple[str, str]:
    for suffix in (LORA_A, LORA_B, ".weight"):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def write_tensor(writer: ShardWriter, name: str, tensor: torch.Tensor) -> None:
    """Append a tensor to safetensors files.

    Raises:
        CheckpointError: safetensors has no such dtype.
        OSError: the disk is full.
    """
    if tensor.dtype not in _NAMES:
        raise CheckpointError(f"The tensor {name} is {tensor.dtype}, which cannot be written.")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    writer.add(name, _NAMES[tensor.dtype], tensor.shape, data)
