"""Writing checkpoints in the released layout, a shard at a time, whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from model_plugin.adapted import open_source
from model_plugin.checkpoint import expected_shapes
from model_plugin.config import VoRAConfig
from model_plugin.processor import VoRAProcessor
from model_plugin.tensors import TensorStream, write_tensor
from model_plugin.verify import verify_merge
from vora_core.errors import CheckpointError
from vora_core.layout import part_of
from vora_core.safetensors_io import ShardWriter

#: Bytes of weights in one file.
MAX_SHARD_BYTES = 1_000_000_000

GENERATION_FILE = "generation_config.json"
GENERATION_DEFAULTS: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}


def export_checkpoint(
    out: str | Path,
    config: VoRAConfig,
    tensors: TensorStream,
    processor: VoRAProcessor | None = None,
    *,
    merged: bool = True,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    check: Callable[[Path], object] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint: configuration, weights, tokenizer, image settings, template.

    Everything goes to a folder beside ``out`` that takes its name only when it is complete.

    Args:
        out: folder to make.
        config: the model's configuration.
        tensors: names in the released layout and their tensors; consumed one at a time.
        processor: supplies tokenizer, image settings and chat template.
        merged: write the configuration as merged; otherwise the tensors may hold LoRA factors
            and ``aux_vision.*``, and the configuration already says so.
        dtype: dtype of floating-point weights on disk; as they come when absent.
        files: further text files by name (``generation_config.json``, ``README.md``).
        max_shard_bytes: a new weight file begins where this would be exceeded.
        check: called with the complete folder before it takes its name; raises to refuse it.
        overwrite: replace ``out`` if it exists.

    Returns:
        The folder.

    Raises:
        CheckpointError: ``out`` exists, the tensors are not those of the configuration, or the disk
            is full; then nothing is left behind.
    """
    out = Path(out)
    config = VoRAConfig(**config.to_dict())
    config.architectures = ["VoRAForCausalLM"]
    if merged:
        config.lora = (config.lora or {}) | {"r": -1}
        config.aux_vision = ""
    if processor is not None:
        config.image_token_id = processor.image_token_id
    if dtype is not None:
        config.dtype = dtype
    with new_folder(out, overwrite, check) as work:
        _write_weights(work, config, tensors, dtype, max_shard_bytes)
        config.save_pretrained(str(work))
        if processor is not None:
            processor.save_pretrained(work)
        texts = dict(files or {})
        given = json.loads(texts.get(GENERATION_FILE, "{}"))
        generation = GENERATION_DEFAULTS | special_tokens(processor) | given
        texts[GENERATION_FILE] = json.dumps(generation, indent=2) + "\n"
        for name, text in texts.items():
            (work / name).write_text(text, encoding="utf-8")
    return out


@contextmanager
def new_folder(
    out: Path, overwrite: bool, check: Callable[[Path], object] | None = None
) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name only when it is complete.

    Args:
        out: folder to make.
        overwrite: replace it if it exists.
        check: called with the complete folder before it takes its name; raises to refuse it.

    Yields:
        The folder to write to.

    Raises:
        CheckpointError: ``out`` exists, or the disk is full; then nothing is left behind.
    """
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out} exists already; say overwrite to replace it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield work
        work.chmod(0o755)
        for file in work.iterdir():
            file.chmod(0o644)
        _sync(work)
        if check is not None:
            check(work)
        _take_name(work, out)
    except OSError as error:
        raise CheckpointError(f"{out} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def merge_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    files: Mapping[str, str] | None = None,
    verify: bool = False,
    overwrite: bool = False,
) -> Path:
    """Merge a pretraining checkpoint's LoRA factors and export the result, a tensor at a time.

    Args:
        source: checkpoint in any layout, extra biases are kept; or a vision adapter.
        out: folder to make.
        base: the LLM that a vision adapter was trained on; for adapters only.
        dtype: dtype of the weights on disk; the source's when absent.
        max_shard_bytes: a new weight file begins where this would be exceeded.
        files: further text files by name.
        verify: compare merged and unmerged outputs on a probe before the result takes its name.
        overwrite: replace ``out`` if it exists.

    Raises:
        CheckpointError: ``source`` is no complete checkpoint, ``out`` exists, or the two disagree.
    """
    checkpoint = open_source(source, base)
    checkpoint.check()
    processor = checkpoint.processor()
    texts: dict[str, str] = dict(files or {})
    kept = checkpoint.path / GENERATION_FILE
    if kept.is_file():
        texts.setdefault(kept.name, kept.read_text(encoding="utf-8"))
    return export_checkpoint(
        out,
        checkpoint.config,
        checkpoint.tensors(),
        processor,
        dtype=dtype,
        files=texts,
        max_shard_bytes=max_shard_bytes,
        check=(lambda folder: verify_merge(checkpoint, folder)) if verify else None,
        overwrite=overwrite,
    )


def special_tokens(processor: VoRAProcessor | None) -> dict[str, Any]:
    """What generation needs to know of a tokenizer: where answers end, and how batches are padded.

    Answers end with the token that the chat template puts after one; a base model's tokenizer may
    name another as its end of text, which then ends answers too.
    """
    if processor is None:
        return {}
    tokenizer = processor.tokenizer
    ends = [end for end in (_end_of_answer(processor), tokenizer.eos_token_id) if end is not None]
    found: dict[str, Any] = {}
    if ends:
        ends = list(dict.fromkeys(ends))
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        padding = tokenizer.pad_token_id
        found["pad_token_id"] = ends[0] if padding is None else padding
    if tokenizer.bos_token_id is not None:
        found["bos_token_id"] = tokenizer.bos_token_id
    return found


def _end_of_answer(processor: VoRAProcessor) -> int | None:
    """The token that follows an answer in the chat template's rendering, if it is a special one."""
    answer = "answer"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        tail = str(processor.apply_chat_template(messages)).rpartition(answer)[2]
    except TemplateError:
        return None  # a template that refuses such a conversation
    ids = processor.tokenizer.encode(tail.lstrip(), add_special_tokens=False)
    known = processor.tokenizer.get_added_vocab().values()
    special = {*processor.tokenizer.all_special_ids, *known}
    return ids[0] if ids and ids[0] in special else None


def _write_weights(
    folder: Path,
    config: VoRAConfig,
    tensors: TensorStream,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    expected = expected_shapes(config)
    if config.tie_word_embeddings:
        expected.pop("llm.lm_head.weight", None)
    # LoRA factors and heads come beside what the configuration names.
    room = [*expected] if config.is_merged else 4 * [*expected]
    with ShardWriter(folder, room, max_shard_bytes) as writer:
        for name, tensor in tensors:
            if config.tie_word_embeddings and name == "llm.lm_head.weight":
                continue
            beside = not config.is_merged and part_of(name) in ("lora", "aux")
            if not beside and expected.pop(name, None) != tuple(tensor.shape):
                raise CheckpointError(f"The tensor {name} does not belong to this configuration.")
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"The tensor {name} holds values that are not finite.")
            write_tensor(writer, name, tensor)
            del tensor
        if expected:
            raise CheckpointError(
                f"{len(expected)} tensors are missing, {min(expected)} among them."
            )


def _take_name(work: Path, out: Path) -> None:
    """Put a complete folder in its place; what stood there goes only once it is aside."""
    if not out.exists():
        work.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent)) / out.name
    out.rename(aside)
    work.rename(out)
    shutil.rmtree(aside.parent, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have the files on disk before the folder takes its name."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
