"""GGUF files: what transformers' reader leaves open about their tokenizers and configurations.

A GGUF file names the way in which text is split before byte-pair encoding
(``tokenizer.ggml.pre``) instead of describing it. transformers knows some of these names and takes
GPT-2's way for the others, which gives other tokens than the model was trained with. It also passes
over the size of heads and the scaling of rotary positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from vora_core.errors import CheckpointError, ConfigError
from vora_core.installation import not_installed

_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Splitting:
    """How a family's tokenizer differs from what transformers makes of its GGUF file.

    Attributes:
        digits: whether each digit is split off first.
        whole_words: whether a word that is a token of its own is not merged from parts.
        nfc: whether text is put into Unicode's composed form.
    """

    digits: bool = False
    whole_words: bool = False
    nfc: bool = False


_LLAMA_3 = Splitting(whole_words=True)
_QWEN_2 = Splitting(nfc=True)
#: By ``tokenizer.ggml.pre``, as llama.cpp names and implements them.
_SPLITTINGS = {
    "gpt-2": Splitting(),
    "smollm": Splitting(digits=True),
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "qwen2": _QWEN_2,
    "deepseek-r1-qwen": _QWEN_2,
}


def check(file: Path) -> None:
    """See that a file can be read as GGUF.

    Raises:
        ConfigError: the package ``gguf`` is not installed.
        CheckpointError: it is no GGUF file, is damaged, or scales rotary positions.
    """
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(not_installed("Reading a GGUF file", ["gguf"], "train")) from error
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    if magic != _MAGIC:
        raise CheckpointError(f"{file} is not a GGUF file.")
    metadata = _read(file)
    scaled = any(tensor.name == "rope_freqs.weight" for tensor in metadata.tensors)
    if scaled or _own(metadata, "rope.scaling.type") not in (None, "none"):
        raise CheckpointError(
            f"{file.name} scales rotary positions, which is not read from GGUF files; import the "
            "model's safetensors checkpoint instead."
        )


def fit_config(config: PreTrainedConfig, file: Path) -> None:
    """Put the size of heads, which transformers passes over, into a configuration."""
    size = _own(_read(file), "attention.key_length")
    if size is not None:
        config.head_dim = int(size)


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Make transformers' reading of a GGUF file's tokenizer split text as the model's own does.

    Args:
        tokenizer: changed in place.
        file: the GGUF file.

    Raises:
        CheckpointError: the file names a way of splitting that is not known here.
    """
    metadata = _read(file)
    if _value(metadata, "tokenizer.ggml.model") != "gpt2":
        return  # SentencePiece: nothing is split
    name = _value(metadata, "tokenizer.ggml.pre")
    splitting = _SPLITTINGS.get(str(name))
    if splitting is None:
        raise CheckpointError(
            f"{file.name} splits text as {name!r}, which is not among "
            f"{', '.join(_SPLITTINGS)}; import the model's safetensors checkpoint instead."
        )
    backend = tokenizer.backend_tokenizer
    if splitting.digits:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if splitting.whole_words:
        backend.model.ignore_merges = True
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()


def license_of(file: Path) -> str | None:
    """The licence that a GGUF file names."""
    found = _value(_read(file), "general.license")
    return str(found) if found else None


@lru_cache(maxsize=1)
def _read(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{file} is damaged: its header cannot be read.") from error


def _own(metadata: Any, key: str) -> Any:
    """A value that the file keeps under its architecture's name."""
    return _value(metadata, f"{_value(metadata, 'general.architecture')}.{key}")


def _value(metadata: Any, key: str) -> Any:
    field = metadata.get_field(key)
    return None if field is None else field.contents()
