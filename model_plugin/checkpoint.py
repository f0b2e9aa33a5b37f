"""VoRA checkpoints of every layout: found, understood, checked; nothing dropped in silence.

Tensor names and shapes are those of :mod:`vora_core.layout`; tensors come from
:mod:`model_plugin.tensors`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)

from model_plugin.config import VoRAConfig
from model_plugin.processor import VoRAProcessor
from model_plugin.tensors import TensorFiles, merge_lora
from vora_core.checkpoint import CheckpointHeader, find_image_token_id
from vora_core.errors import CheckpointError, ConfigError
from vora_core.layout import (
    LORA_A,
    Shape,
    check_shapes,
    extra_biases,
    part_of,
)
from vora_core.layout import expected_shapes as shapes_by_keys


class Checkpoint:
    """A VoRA checkpoint on disk.

    Args:
        folder: its folder.
        config: a configuration to use instead of the checkpoint's own.

    Attributes:
        path: its folder.
        config: its configuration, with ``extra_biases`` and ``image_token_id`` filled in from its
            tensors and tokenizer.
        weights: its tensors.

    Raises:
        CheckpointError: there is nothing, or it is not a VoRA checkpoint.
        ConfigError: its configuration is wrong.
    """

    def __init__(self, folder: Path, config: VoRAConfig | None = None) -> None:
        self.path = folder
        self.config = config or read_config(folder)
        self.weights = TensorFiles(folder)
        if self.config.extra_biases is None:
            self.config.extra_biases = self.extra_biases
        if self.config.image_token_id is None:
            self.config.image_token_id = find_image_token_id(folder)

    @classmethod
    def open(cls, path: str | Path, config: VoRAConfig | None = None, **hub: Any) -> Self:
        """Find a checkpoint's configuration and tensors; reads no weights.

        Args:
            path: a folder, or the id of a repository on the Hugging Face hub.
            config: a configuration to use instead of the checkpoint's own.
            **hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``.

        Raises:
            CheckpointError: there is nothing, or it is not a VoRA checkpoint.
            ConfigError: its configuration is wrong.
        """
        return cls(locate(path, **hub), config)

    @property
    def llm_folder(self) -> Path:
        """The folder with the LLM's weights."""
        return self.path

    @property
    def files(self) -> dict[str, Path]:
        """The weight file of each tensor."""
        return self.weights.files

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each tensor."""
        return self.weights.shapes

    @property
    def dtypes(self) -> dict[str, str]:
        """Dtype that each tensor is stored in, in torch's names (``bfloat16``)."""
        return self.weights.dtypes

    @property
    def lora_modules(self) -> list[str]:
        """Layers, without ``.weight``, that have separate LoRA factors."""
        return sorted(name.removesuffix(LORA_A) for name in self.files if name.endswith(LORA_A))

    @property
    def extra_biases(self) -> list[str]:
        """Layers of the LLM with a bias that its architecture lacks (``model.layers...``)."""
        return extra_biases(self.files, self.config.to_dict())

    @property
    def layout(self) -> Literal["pretraining", "merged"]:
        """``pretraining``: LoRA factors beside the base weights; ``merged``: one weight a layer."""
        return "pretraining" if self.lora_modules else "merged"

    def processor(self) -> VoRAProcessor:
        """Its processor.

        Raises:
            CheckpointError: files are missing, or the tokenizer has no ``<|image_pad|>``.
        """
        return VoRAProcessor.from_pretrained(self.path, config=self.config)

    def tensor(self, name: str, rows: range | None = None) -> torch.Tensor:
        """One tensor, or consecutive rows of it, in the dtype it is stored in.

        Raises:
            CheckpointError: there is no such tensor, or its file breaks off.
        """
        return self.weights.read(name, rows)

    def raw_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors as stored, one at a time, LoRA factors next to their weight."""
        for name in sorted(self.files):
            yield name, self.tensor(name)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged model's tensors, one at a time; LoRA folded in, ``aux_vision`` left out."""
        kept = ((name, self.tensor(name)) for name in sorted(self.files) if part_of(name) != "aux")
        return merge_lora(kept, self.lora_modules)

    def check(self) -> None:
        """Compare names and shapes with what the configuration calls for.

        Raises:
            CheckpointError: tensors are unknown, missing or of another shape; they are named.
        """
        tied = bool(self.config.tie_word_embeddings)
        check_shapes(self.shapes, expected_shapes(self.config), tied=tied)


def expected_shapes(config: VoRAConfig) -> dict[str, Shape]:
    """Names and shapes of the tensors of a merged model."""
    return shapes_by_keys(config.to_dict())


def locate(path: str | Path, **hub: Any) -> Path:
    """The folder of a checkpoint, downloaded if it is on the hub.

    Raises:
        CheckpointError: there is neither a folder nor a repository of that name.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder.")
    patterns = ["*.json", "*.safetensors", "*.bin", "*.jinja", "*.txt"]
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns, **hub))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"There is no folder {path}, and the Hugging Face hub did not give it "
            f"({type(error).__name__})."
        ) from error


def read_config(folder: Path) -> VoRAConfig:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: there is none, or it is not VoRA's.
        ConfigError: a value does not fit.
    """
    header = CheckpointHeader.open(folder)
    header.require_vora()
    return vora_config(header.config, folder)


def vora_config(keys: Mapping[str, Any], folder: Path) -> VoRAConfig:
    """The configuration of these keys.

    Args:
        keys: the contents of a ``config.json``.
        folder: where they come from.

    Raises:
        ConfigError: a value does not fit.
    """
    try:
        return VoRAConfig(**keys)
    except ConfigError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        file = folder / "config.json"
        raise ConfigError(f"{file} has a value that does not fit: {reason}") from error
