"""Writing checkpoints in the released layout, a shard at a time, whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from model_plugin.checkpoint import Checkpoint, expected_shapes, part_of
from model_plugin.config import VoRAConfig
from model_plugin.errors import CheckpointError
from model_plugin.processor import VoRAProcessor

#: Bytes of weights in one file; a shard is held in memory while it is collected.
MAX_SHARD_BYTES = 1_000_000_000

GENERATION_DEFAULTS = {"do_sample": False, "repetition_penalty": 1.0}


def export_checkpoint(
    out: str | Path,
    config: VoRAConfig,
    tensors: Iterable[tuple[str, torch.Tensor]],
    processor: VoRAProcessor | None = None,
    *,
    merged: bool = True,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
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
        overwrite: replace ``out`` if it exists.

    Returns:
        The folder.

    Raises:
        CheckpointError: ``out`` exists, or the tensors are not those of the configuration.
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
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return out


def merge_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Merge a pretraining checkpoint's LoRA factors and export the result, a tensor at a time.

    Args:
        source: checkpoint in any layout; extra biases are kept.
        out: folder to make.
        dtype: dtype of the weights on disk; the source's when absent.
        overwrite: replace ``out`` if it exists.

    Raises:
        CheckpointError: ``source`` is no complete checkpoint, or ``out`` exists.
    """
    checkpoint = Checkpoint.open(source)
    checkpoint.check()
    processor = VoRAProcessor.from_pretrained(checkpoint.path, config=checkpoint.config)
    kept = checkpoint.path / "generation_config.json"
    files = {kept.name: kept.read_text(encoding="utf-8")} if kept.is_file() else {}
    return export_checkpoint(
        out,
        checkpoint.config,
        checkpoint.tensors(),
        processor,
        dtype=dtype,
        files=files,
        overwrite=overwrite,
    )


def _write_weights(
    folder: Path,
    config: VoRAConfig,
    tensors: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    expected = expected_shapes(config)
    if config.tie_word_embeddings:
        expected.pop("llm.lm_head.weight", None)
    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    shard_bytes = total = 0

    def flush() -> None:
        nonlocal shard, shard_bytes
        save_file(shard, str(_shard(folder, len(shards))), metadata={"format": "pt"})
        shards.append(list(shard))
        shard, shard_bytes = {}, 0

    for name, tensor in tensors:
        if config.tie_word_embeddings and name == "llm.lm_head.weight":
            continue
        beside = not config.is_merged and part_of(name) in ("lora", "aux")
        if not beside and expected.pop(name, None) != tuple(tensor.shape):
            raise CheckpointError(f"The tensor {name} does not belong to this configuration.")
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        size = tensor.numel() * tensor.element_size()
        if shard and shard_bytes + size > max_shard_bytes:
            flush()
        shard[name] = tensor.detach().cpu().contiguous().clone()
        shard_bytes += size
        total += size
    if expected:
        raise CheckpointError(f"{len(expected)} tensors are missing, {min(expected)} among them.")
    flush()
    if len(shards) == 1:
        _shard(folder, 0).rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        _shard(folder, index).rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index_data = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(index_data, indent=2) + "\n", encoding="utf-8"
    )


def _shard(folder: Path, index: int) -> Path:
    return folder / f"shard-{index}.tmp"


def _sync(folder: Path) -> None:
    """Have the files on disk before the folder takes its name."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
