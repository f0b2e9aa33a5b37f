"""Writing vision adapters, and the LLMs that they belong to, from pretraining checkpoints."""

import json
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model_plugin.adapted import AdaptedFiles, open_source
from model_plugin.checkpoint import Checkpoint
from model_plugin.export import (
    GENERATION_DEFAULTS,
    GENERATION_FILE,
    MAX_SHARD_BYTES,
    new_folder,
    special_tokens,
)
from model_plugin.tensors import TensorFiles, TensorStream, write_tensor
from model_plugin.verify import compare_probes
from vora_core import __version__
from vora_core.adapter import (
    ADAPTER_FILE,
    EMBEDDER_FILE,
    FACTORS_FILE,
    FORMAT,
    PEFT_FILE,
    PEFT_PREFIX,
    TEMPLATE_FILE,
    VISION_KEYS,
    AdapterHeader,
)
from vora_core.checkpoint import PROCESSOR_FILE
from vora_core.errors import CheckpointError, ConfigError
from vora_core.identity import llm_digest, llm_name
from vora_core.layout import LORA_A, LORA_B, part_of
from vora_core.safetensors_io import ShardWriter

_CARD = "README.md"


@dataclass(frozen=True)
class ExportedAdapter:
    """What an export made.

    Attributes:
        folder: the adapter.
        rank: of its factors.
        full_rank: of the factors that it was made from.
        energy: share of the squared singular values of all updates B A that is kept.
        least_energy: the same of the layer that lost most.
        difference: of the logits on a probe, root of mean squares relative to the untruncated
            model's; None where nothing was truncated.
    """

    folder: Path
    rank: int
    full_rank: int
    energy: float = 1.0
    least_energy: float = 1.0
    difference: float | None = None


def export_adapter(
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    base_name: str | None = None,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> ExportedAdapter:
    """Write what a pretraining run added to its LLM as a vision adapter.

    Args:
        source: a pretraining checkpoint, LoRA factors beside the LLM's weights; or an adapter, to
            truncate it.
        out: folder to make.
        base: the LLM that an adapter was trained on; for adapters only.
        base_name: what the LLM is called; the name in the run's recipe when absent.
        rank: truncate the updates to this rank, each to its closest (Eckart-Young).
        dtype: of the tensors on disk; as they are stored when absent.
        overwrite: replace ``out`` if it exists.

    Returns:
        What was made, with what truncation lost.

    Raises:
        CheckpointError: ``source`` holds no separate LoRA factors, or more than an adapter can
            carry (biases that its LLM lacks, causal images); or ``out`` exists.
        ConfigError: ``rank`` is not below the rank of the factors.
    """
    checkpoint = open_source(source, base)
    checkpoint.check()
    full = _require_adapter(checkpoint)
    if rank is not None and not 0 < rank < full:
        raise ConfigError(f"The rank must be from 1 to {full - 1}, below the factors' {full}.")
    kept = rank or full
    name = base_name or _trained_from(checkpoint)
    processor = checkpoint.processor()
    energies: list[tuple[float, float]] = []
    out = Path(out)
    with new_folder(out, overwrite) as work:
        with checkpoint.weights:
            save_file(
                dict(_factors(checkpoint, rank, dtype, energies)), work / FACTORS_FILE, _METADATA
            )
            save_file(dict(_embedder(checkpoint, dtype)), work / EMBEDDER_FILE, _METADATA)
        digest = llm_digest(checkpoint.llm_folder, checkpoint.config.to_dict())
        settings = {
            "format": FORMAT,
            "base": {"name": name, "sha256": digest},
            "vision": {key: getattr(checkpoint.config, key) for key in VISION_KEYS},
            "lora": {"rank": kept, "trained_rank": full, "energy": _energy(energies)},
            "made_with": f"vora-serve {__version__}",
        }
        _write_json(work / ADAPTER_FILE, settings)
        _write_json(work / PEFT_FILE, _peft_settings(checkpoint, kept, name))
        _write_json(work / PROCESSOR_FILE, processor.image_processor.to_dict())
        _write_json(work / GENERATION_FILE, GENERATION_DEFAULTS | special_tokens(processor))
        (work / TEMPLATE_FILE).write_text(processor.chat_template, encoding="utf-8")
        header = AdapterHeader.open(work)
        header.check(checkpoint.config.to_dict() | {"model_type": checkpoint.config.llm_model_type})
        difference = _truncation_loss(checkpoint, header) if rank is not None else None
        made = ExportedAdapter(
            out, kept, full, _energy(energies), min((k / a for k, a in energies), default=1.0),
            difference,
        )  # fmt: skip
        (work / _CARD).write_text(_card(made, header, checkpoint.path), encoding="utf-8")
    return made


def export_llm(
    source: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a VoRA checkpoint's LLM as transformers saves it: the base of its vision adapters.

    Args:
        source: a pretraining checkpoint; LoRA factors and embedder are left out.
        out: folder to make.
        dtype: of its weights on disk; as they are stored when absent. An adapter that was trained
            beside wider weights does not belong to the narrower ones.
        overwrite: replace ``out`` if it exists.

    Raises:
        CheckpointError: the LLM has biases that its architecture lacks, or ``out`` exists.
    """
    checkpoint = Checkpoint.open(source)
    checkpoint.check()
    _refuse_extra_biases(checkpoint)
    config = checkpoint.config.inner_config()
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    tensors = [(name, plain) for name in sorted(checkpoint.files) if (plain := llm_name(name))]
    if config.tie_word_embeddings:
        tensors = [pair for pair in tensors if pair[1] != "lm_head.weight"]
    processor = checkpoint.processor()
    out = Path(out)
    with new_folder(out, overwrite) as work:
        names = [plain for _, plain in tensors]
        with ShardWriter(work, names, MAX_SHARD_BYTES) as writer, checkpoint.weights as files:
            for name, plain in tensors:
                tensor = files.read(name)
                write_tensor(writer, plain, tensor.to(dtype or tensor.dtype))
        if dtype is not None:
            config.dtype = dtype
        config.save_pretrained(str(work))
        tokenizer = processor.tokenizer
        tokenizer.chat_template = processor.chat_template
        tokenizer.save_pretrained(str(work))
        _write_json(work / GENERATION_FILE, GENERATION_DEFAULTS | special_tokens(processor))
    return out


_METADATA = {"format": "pt"}


def _require_adapter(checkpoint: Checkpoint) -> int:
    """The rank of a checkpoint's factors, if an adapter can carry all that it learned."""
    if not checkpoint.lora_modules:
        raise CheckpointError(
            f"{checkpoint.path} has no separate LoRA factors: they are merged. Export the adapter "
            "from the pretraining run's own checkpoint."
        )
    _refuse_extra_biases(checkpoint)
    if not checkpoint.config.is_mm_prefix_lm:
        raise CheckpointError(
            f"{checkpoint.path} sees images causally, which adapters of one LLM cannot differ in; "
            "merge it instead (vora-serve merge)."
        )
    ranks = {checkpoint.shapes[module + LORA_A][0] for module in checkpoint.lora_modules}
    if len(ranks) > 1:
        raise CheckpointError(f"{checkpoint.path} has LoRA factors of ranks {sorted(ranks)}.")
    return ranks.pop()


def _refuse_extra_biases(checkpoint: Checkpoint) -> None:
    extra = checkpoint.extra_biases
    if extra:
        raise CheckpointError(
            f"{checkpoint.path} has {len(extra)} biases that its LLM's architecture lacks, as "
            "released checkpoints do; run-time LoRA cannot carry them. Merge it instead "
            "(vora-serve merge)."
        )


def _factors(
    checkpoint: Checkpoint,
    rank: int | None,
    dtype: torch.dtype | None,
    energies: list[tuple[float, float]],
) -> TensorStream:
    """LoRA factors in peft's layout; truncated, with the energies kept and whole added."""
    for module in checkpoint.lora_modules:
        a, b = checkpoint.tensor(module + LORA_A), checkpoint.tensor(module + LORA_B)
        stored = dtype or a.dtype
        if rank is not None:
            a, b, kept, whole = truncate(a, b, rank)
            energies.append((kept, whole))
        layer = PEFT_PREFIX + module.removeprefix("llm.")
        yield layer + LORA_A, a.to(stored).contiguous()
        yield layer + LORA_B, b.to(stored).contiguous()


def truncate(
    a: torch.Tensor, b: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """The factors of the closest update of lower rank, by the singular values of B A.

    Args:
        a: (r, in).
        b: (out, r).
        rank: of the result.

    Returns:
        float32 A (rank, in) and B (out, rank), the sum of the squared singular values kept, and of
        all of them. Nothing larger than a factor is ever held.
    """
    left, upper = torch.linalg.qr(b.double())
    right, lower = torch.linalg.qr(a.double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    some = values[:rank]
    root = some.sqrt()
    whole = float(values.square().sum())
    new_a, new_b = torch.zeros(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
    new_b[:, : len(some)] = ((left @ u[:, : len(some)]) * root).float()
    new_a[: len(some)] = (root[:, None] * (v[: len(some)] @ right.T)).float()
    return new_a, new_b, float(some.square().sum()), whole


def _energy(energies: list[tuple[float, float]]) -> float:
    whole = sum(whole for _, whole in energies)
    return sum(kept for kept, _ in energies) / whole if whole else 1.0


def _embedder(checkpoint: Checkpoint, dtype: torch.dtype | None) -> TensorStream:
    for name in sorted(checkpoint.files):
        if part_of(name) == "vision":
            tensor = checkpoint.tensor(name)
            yield name, tensor.to(dtype or tensor.dtype)


def _truncation_loss(checkpoint: Checkpoint, header: AdapterHeader) -> float:
    other = copy(checkpoint)
    other.weights = AdaptedFiles(TensorFiles(checkpoint.llm_folder), header)
    return compare_probes(checkpoint, other)


def _peft_settings(checkpoint: Checkpoint, rank: int, name: str) -> dict[str, Any]:
    layers = [module.removeprefix("llm.model.layers.") for module in checkpoint.lora_modules]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
        "layers_to_transform": sorted({int(layer.partition(".")[0]) for layer in layers}),
        "layers_pattern": "layers",
        "inference_mode": True,
    }


def _trained_from(checkpoint: Checkpoint) -> str:
    """The LLM's name: in the recipe of a run, or its folder's."""
    folder = checkpoint.llm_folder
    file = folder / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    model = recipe.get("model") if isinstance(recipe, dict) else None
    path = model.get("path") if isinstance(model, dict) else None
    return Path(str(path or folder)).name


def _card(made: ExportedAdapter, header: AdapterHeader, source: Path) -> str:
    settings = header.image_settings
    lines = [
        "---",
        "library_name: vora-serve",
        "pipeline_tag: image-text-to-text",
        "tags: [lora, vision-adapter]",
        "---",
        "",
        "# Vision adapter",
        "",
        f"Makes the LLM `{header.base_name}` see: LoRA factors of rank {made.rank} on "
        f"{len(header.factors) // 2} linear layers and a patch embedder, "
        f"{header.parameters:,} parameters in all. The LLM's own weights are not in here.",
        "",
        f"- LLM: tensors with the hash `{header.base_digest}`",
        f"- images: {settings.resolution} resolution, patches of {settings.patch_size} px, up to "
        f"{settings.max_tokens} tokens an image",
    ]
    if made.difference is not None:
        lines += [
            f"- truncated from rank {made.full_rank}: keeps {made.energy:.2%} of the updates' "
            f"energy ({made.least_energy:.2%} in the layer that lost most); logits on a probe "
            f"differ by {made.difference:.2%}",
        ]
    lines += [
        "",
        "```bash",
        "vora-serve serve --model LLM --vision-adapter NAME=THIS_FOLDER",
        "vora-serve merge source=THIS_FOLDER base=LLM out=MERGED",
        "```",
        "",
    ]
    card = source / _CARD
    if card.is_file():
        told = card.read_text(encoding="utf-8").rpartition("---\n")[2].strip()
        lines += ["## The pretraining run", "", told.replace("\n#", "\n##"), ""]
    return "\n".join(lines)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
