"""A checkpoint's headers: whether it is VoRA, how large it is, how many tokens an image takes.

Reads JSON files and the headers of safetensors files; never a weight, and no tensor library.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from vora_core.errors import CheckpointError, ConfigError
from vora_core.geometry import IMAGE_TOKEN, ImageSettings
from vora_core.layout import kv_values_per_token
from vora_core.safetensors_io import TensorEntry, read_entries

MODEL_TYPE = "vora"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
#: Files that end like weights and are not.
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin")
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint's small files say.

    Attributes:
        folder: where it is.
        config: the contents of ``config.json``.
        processor: the contents of ``preprocessor_config.json``; empty where there is none.
    """

    folder: Path
    config: Mapping[str, Any]
    processor: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the JSON files of a checkpoint of any kind.

        Raises:
            CheckpointError: there is no ``config.json``, or a file is not a JSON object.
        """
        if not (folder / CONFIG_FILE).is_file():
            raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}.")
        processor = folder / PROCESSOR_FILE
        return cls(
            folder,
            read_json(folder / CONFIG_FILE),
            read_json(processor) if processor.is_file() else {},
        )

    @property
    def model_type(self) -> str | None:
        """The family that ``config.json`` names."""
        kind = self.config.get("model_type")
        return kind if isinstance(kind, str) else None

    def require_vora(self) -> None:
        """Refuse other families.

        Raises:
            CheckpointError: it is not a VoRA checkpoint.
        """
        if self.model_type != MODEL_TYPE:
            said = f"is {self.model_type!r}" if self.model_type else "is missing"
            raise CheckpointError(
                f"{self.folder} is not a VoRA checkpoint: its model_type {said}, not 'vora'."
            )

    @cached_property
    def image_settings(self) -> ImageSettings:
        """How images become patches.

        Raises:
            ConfigError: a value does not fit.
        """
        return ImageSettings.from_dict(
            {"size": self.config.get("image_size", ImageSettings.image_size)} | {**self.processor},
            patch_size=self.config.get("patch_size", ImageSettings.patch_size),
            merge_size=self.config.get("spatial_merge_size", ImageSettings.merge_size),
        )

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer's file is there."""
        return any((self.folder / name).is_file() for name in TOKENIZER_FILES)

    @property
    def image_token_id(self) -> int | None:
        """Id of the image token, by the configuration or the tokenizer."""
        given = self.config.get("image_token_id")
        return given if isinstance(given, int) else find_image_token_id(self.folder)

    def kv_bytes_per_token(self, bytes_per_value: int | None = None) -> int:
        """Bytes of KV cache that a token takes, in the weights' dtype by default.

        Raises:
            ConfigError: a size is missing or does not fit.
        """
        if bytes_per_value is None:
            dtype = str(self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16")
            bytes_per_value = _DTYPE_BYTES.get(dtype.removeprefix("torch."), 2)
        try:
            return bytes_per_value * kv_values_per_token(self.config)
        except KeyError as error:
            raise ConfigError(f"{self.folder}: config.json has no {error.args[0]}.") from error
        except (TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"{self.folder}: config.json has sizes that do not fit.") from error

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        """Every tensor of the safetensors files, by name.

        Raises:
            CheckpointError: a file is missing or damaged, or there is none.
        """
        files = weight_files(self.folder)
        entries: dict[str, TensorEntry] = {}
        for file in files:
            if file.suffix != ".safetensors":
                raise CheckpointError(f"{self.folder} holds no safetensors files.")
            entries |= read_entries(file)
        return entries

    @property
    def parameters(self) -> int:
        """Number of values in the weight files."""
        return sum(entry.count for entry in self.tensors.values())

    @property
    def weight_bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.stat().st_size for file in weight_files(self.folder))


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} does not hold a JSON object.")
    return data


def find_image_token_id(folder: Path) -> int | None:
    """Id of ``<|image_pad|>`` in a checkpoint's tokenizer; None if it does not say."""
    file = folder / "tokenizer.json"
    if file.is_file():
        for token in read_json(file).get("added_tokens", []):
            if token["content"] == IMAGE_TOKEN:
                return int(token["id"])
    file = folder / "tokenizer_config.json"
    if file.is_file():
        for token_id, token in read_json(file).get("added_tokens_decoder", {}).items():
            if token["content"] == IMAGE_TOKEN:
                return int(token_id)
    return None


def weight_map(folder: Path) -> dict[str, Path] | None:
    """Tensor name to file, from the index of a sharded checkpoint; None where there is no index.

    Raises:
        CheckpointError: the index is damaged, or files that it names are missing.
    """
    for kind in ("safetensors", "bin"):
        indexes = sorted(folder.glob(f"*.{kind}.index.json"))
        if not indexes:
            continue
        files = read_json(indexes[0]).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
            raise CheckpointError(f"{indexes[0]} has no weight_map.")
        absent = sorted({file for file in files.values() if not (folder / file).is_file()})
        if absent:
            raise CheckpointError(f"{folder} lacks weight files: {', '.join(absent)}.")
        return {name: folder / file for name, file in files.items()}
    return None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint: those of its index, else safetensors, else ``.bin``.

    Raises:
        CheckpointError: there are none, or some are missing.
    """
    mapped = weight_map(folder)
    if mapped is not None:
        return sorted(set(mapped.values()))
    for kind in ("safetensors", "bin"):
        files = sorted(f for f in folder.glob(f"*.{kind}") if f.name not in _NOT_WEIGHTS)
        if files:
            return files
    raise CheckpointError(f"{folder} has no weights (*.safetensors or *.bin).")


def find_local(location: str) -> Path | None:
    """The folder of a checkpoint, where its files are on this machine already.

    Args:
        location: an absolute path, or the id of a hub's repository that is in the local cache.
    """
    path = Path(location)
    if path.is_absolute():
        return path if (path / CONFIG_FILE).is_file() else None
    if location.count("/") != 1 or ".." in location:
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    folder = cache / f"models--{location.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / revision
    return snapshot if (snapshot / CONFIG_FILE).is_file() else None
