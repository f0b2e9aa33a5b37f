"""An LLM and a vision adapter read as the one pretraining checkpoint that they make together."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from model_plugin.checkpoint import Checkpoint, vora_config
from model_plugin.processor import VoRAProcessor
from model_plugin.tensors import TensorFiles
from vora_core.adapter import (
    AdapterHeader,
    is_adapter,
    open_base,
    require_base,
    split_factor,
)
from vora_core.checkpoint import find_image_token_id
from vora_core.errors import CheckpointError, ConfigError
from vora_core.identity import llm_digest, llm_name
from vora_core.layout import Shape, part_of


class AdaptedFiles(TensorFiles):
    """An LLM's tensors and an adapter's, under the names of a pretraining checkpoint.

    Args:
        llm: tensors of the LLM, of its own checkpoint or of a VoRA checkpoint.
        adapter: the adapter.

    Raises:
        CheckpointError: files are missing or damaged.
    """

    def __init__(self, llm: TensorFiles, adapter: AdapterHeader) -> None:
        own = TensorFiles(adapter.folder)
        self.folder = adapter.folder
        self._opened = {}
        self._sources: dict[str, tuple[TensorFiles, str]] = {}
        for name in llm.files:
            plain = llm_name(name)
            if plain is not None:
                self._sources[f"llm.{plain}"] = (llm, name)
        for name in own.files:
            self._sources[_checkpoint_name(name)] = (own, name)
        self.files = {name: source.files[n] for name, (source, n) in self._sources.items()}

    def read(self, name: str, rows: range | None = None) -> torch.Tensor:
        """As :meth:`TensorFiles.read`."""
        source, original = self._source(name)
        return source.read(original, rows)

    def close(self) -> None:
        """Close all files."""
        for source, _ in getattr(self, "_sources", {}).values():
            source.close()

    def _facts(self, name: str) -> tuple[Shape, str]:
        source, original = self._source(name)
        return source.shapes[original], source.dtypes[original]

    def _source(self, name: str) -> tuple[TensorFiles, str]:
        if name not in self._sources:
            raise CheckpointError(f"Base LLM and adapter have no tensor {name}.")
        return self._sources[name]


class AdaptedCheckpoint(Checkpoint):
    """A base LLM with a vision adapter; both are checked to belong together.

    Args:
        base: folder of the LLM's own checkpoint.
        adapter: folder of the adapter.

    Raises:
        CheckpointError: the adapter was trained on another LLM, or files are missing or damaged.
        ConfigError: a value does not fit.
    """

    def __init__(self, base: Path, adapter: Path) -> None:
        header, found = AdapterHeader.open(adapter), open_base(base)
        require_base(header, found, llm_digest(base, found.config))
        self.path = adapter
        self.base = base
        self.config = vora_config(header.config(found.config), adapter)
        self.config.image_token_id = find_image_token_id(base)
        self.weights = AdaptedFiles(TensorFiles(base), header)

    @property
    def llm_folder(self) -> Path:
        """The folder with the LLM's weights."""
        return self.base

    def processor(self) -> VoRAProcessor:
        """The LLM's tokenizer with the adapter's image settings and chat template."""
        tokenizer: Any = AutoTokenizer.from_pretrained(self.base)
        return VoRAProcessor.from_pretrained(self.path, config=self.config, tokenizer=tokenizer)


def open_source(source: str | Path, base: str | Path | None = None) -> Checkpoint:
    """What a model is merged from: a checkpoint, or a vision adapter with its LLM.

    Args:
        source: the checkpoint, a folder or a hub id; or the adapter's folder.
        base: the adapter's LLM.

    Raises:
        CheckpointError: there is nothing, or adapter and LLM do not belong together.
        ConfigError: an adapter is given without its LLM, or an LLM without an adapter.
    """
    if is_adapter(Path(source)):
        if base is None:
            raise ConfigError(
                f"{source} is a vision adapter; name the LLM that it was trained on (base=PATH)."
            )
        return AdaptedCheckpoint(Path(base), Path(source))
    if base is not None:
        raise ConfigError(f"{source} is not a vision adapter, so it goes without a base LLM.")
    return Checkpoint.open(source)


def _checkpoint_name(name: str) -> str:
    """An adapter's tensor as a pretraining checkpoint calls it."""
    if part_of(name) == "vision":
        return name
    layer, which = split_factor(name)
    return f"llm.{layer}.lora_{which}.weight"
