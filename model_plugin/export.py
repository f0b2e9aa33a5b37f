"""Writing checkpoints in the released layout, a shard at a time, whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from model_plugin.checkpoint import Checkpoint, expected_shapes
from model_plugin.config import VoRAConfig
from model_plugin.processor import VoRAProcessor
from model_plugin.tensors import TensorStream, write_tensor
from model_plugin.verify import verify_merge
from vora_core.errors import CheckpointError
from vora_core.layout import part_of
from vora_core.safetensors_io import ShardWriter

#: Bytes of weights in one file.
MAX_SHARD_BYTES = 1_000_000_000

GENERATION_DEFAULTS = {"do_sample": False, "repetition_penalty": 1.0}


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
            and ``aux_vision.*``, and the configuration says so as it stands.
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
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out} exists already; say overwrite to replace it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    config = VoRAConfig(**config.to_dict())
    config.architectures = ["VoRAForCausalLM"]
    if merged:
        config.lora = (config.lora or {}) | {"r": -1}
        config.aux_vision = ""
    if processor is not None:
        config.image_token_id = processor.image_token_id
    if dtype is not None:
        config.dtype = dtype
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_weights(work, config, tensors, dtype, max_shard_bytes)
        config.save_pretrained(str(work))
        if processor is not None:
            processor.save_pretrained(work)
        generation = json.dumps(GENERATION_DEFAULTS, indent=2) + "\n"
        for name, text in ({"generation_config.json": generation} | dict(files or {})).items():
            (work / name).write_text(text, encoding="utf-8")
        work.chmod(0o755)
        _sync(work)
        if check is not None:
            check(work)
        _take_name(work, out)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise CheckpointError(f"{out} could not be written: {error.strerror or error}.") from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return out


def merge_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    files: Mapping[str, str] | None = None,
    verify: bool = False,
    overwrite: bool = False,
) -> Path:
    """Merge a pretraining checkpoint's LoRA factors and export the result, a tensor at a time.

    Args:
        source: checkpoint in any layout; extra biases are kept.
        out: folder to make.
        dtype: dtype of the weights on disk; the source's when absent.
        max_shard_bytes: a new weight file begins where this would be exceeded.
        files: further text files by name.
        verify: compare merged and unmerged outputs on a probe before the result takes its name.
        overwrite: replace ``out`` if it exists.

    Raises:
        CheckpointError: ``source`` is no complete checkpoint, ``out`` exists, or the two disagree.
    """
    checkpoint = Checkpoint.open(source)
    checkpoint.check()
    processor = VoRAProcessor.from_pretrained(checkpoint.path, config=checkpoint.config)
    texts: dict[str, str] = dict(files or {})
    kept = checkpoint.path / "generation_config.json"
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
