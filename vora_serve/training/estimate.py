"""What a run will take, said before any weights are read: parameters, memory, work.

Estimates, not promises: activations are counted as what transformer blocks usually keep, and work
as matrix products alone.
"""

from dataclasses import dataclass

import torch

from model_plugin import VoRAForCausalLM
from vora_core.layout import LINEAR_LAYERS
from vora_serve.training.plan import Plan
from vora_serve.training.recipe import Optimisation

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Estimate:
    """Numbers of a run.

    Attributes:
        parameters: by group.
        trained: names of the groups that train.
        memory: bytes of one process, by what they are for.
        tokens_per_step: at most, on all processes.
        flops_per_step: on all processes.
    """

    parameters: dict[str, int]
    trained: tuple[str, ...]
    memory: dict[str, int]
    tokens_per_step: int
    flops_per_step: float

    @property
    def trained_parameters(self) -> int:
        """Parameters that train."""
        return sum(self.parameters[name] for name in self.trained)


def count_parameters(plan: Plan, lora_rank: int) -> dict[str, int]:
    """Parameters by group, from shapes alone.

    Args:
        plan: the run's parts.
        lora_rank: of the factors; counted only when blocks have LoRA.
    """
    with torch.device("meta"):
        model = VoRAForCausalLM(plan.config)
    counts = {
        "LLM": sum(p.numel() for p in model.llm.parameters()),
        "embedder": sum(p.numel() for p in model.vision_embedding.parameters()),
    }
    if plan.blocks.lora:
        counts["LoRA"] = sum(
            lora_rank * sum(model.get_submodule(f"llm.model.layers.{i}.{layer}").weight.shape)
            for i in range(plan.blocks.lora)
            for layer in LINEAR_LAYERS
        )
    teacher = plan.teacher_config
    if teacher is not None:
        width = plan.config.hidden_size
        counts["auxiliary heads"] = len(plan.blocks.distilled) * (
            width + width * teacher.hidden_size
        )
        counts["teacher"] = _vit_parameters(teacher)
    return counts


def estimate(
    plan: Plan,
    settings: Optimisation,
    *,
    lora_rank: int,
    max_length: int,
    dtype: str,
    teacher_dtype: str,
    processes: int,
) -> Estimate:
    """Estimate a run.

    Args:
        plan: the run's parts.
        settings: the recipe's.
        lora_rank: of the factors.
        max_length: tokens of a sequence.
        dtype, teacher_dtype: of frozen weights, and of the teacher's.
        processes: that share the run.
    """
    counts = count_parameters(plan, lora_rank)
    lora = plan.blocks.lora > 0
    groups = ("LoRA" if lora else "LLM", "embedder", "auxiliary heads")
    trained = tuple(name for name in groups if counts.get(name))
    train = sum(counts[name] for name in trained)
    frozen = counts["LLM"] if lora else 0
    shards = processes if settings.sharding == "fsdp2" else 1
    parts = processes if settings.sharding != "none" else 1
    rows = settings.micro_batch_size or settings.batch_size
    tokens = rows * max_length
    config, width = plan.config, plan.config.hidden_size
    number = 2 if settings.bf16 else 4
    block = tokens * (8 * width + 3 * config.intermediate_size) * number
    layers = config.num_hidden_layers
    kept = layers * tokens * width * number + block if settings.gradient_checkpointing else 0
    # The backward pass needs the weights as they were computed with, a block's at a time where
    # activations are computed again.
    copies = 2 * train // (layers if settings.gradient_checkpointing else 1) * settings.bf16
    logits = min(settings.loss_chunk or tokens, tokens) * config.vocab_size * 4 * 2
    memory = {
        "frozen weights": frozen * _BYTES[dtype] // shards,
        "trained weights": 4 * train // shards,
        "bfloat16 copies": copies,
        "gradients": 4 * train // shards,
        "optimizer": 8 * train // parts,
        "teacher": counts.get("teacher", 0) * _BYTES[teacher_dtype] if plan.blocks.distilled else 0,
        "activations": kept or layers * block,
        "logits": logits,
    }
    per_step = settings.batch_size * max_length
    through = counts["LLM"] - config.vocab_size * width  # the embedding is looked up
    flops = (4.0 * through + 6.0 * train if lora else 6.0 * through) * per_step
    if settings.gradient_checkpointing:
        flops += 2.0 * through * per_step
    if plan.blocks.distilled:
        flops += 2.0 * counts["teacher"] * per_step
    return Estimate(counts, trained, memory, per_step, flops)


def _vit_parameters(config: object) -> int:
    width, depth = int(config.hidden_size), int(config.num_hidden_layers)  # type: ignore[attr-defined]
    inner = int(getattr(config, "intermediate_size", 0) or 4 * width)
    gated = 3 if getattr(config, "model_type", "").startswith("aimv2") else 2
    patch = int(config.patch_size) ** 2 * 3  # type: ignore[attr-defined]
    tokens = (int(config.image_size) // int(config.patch_size)) ** 2  # type: ignore[attr-defined]
    return depth * (4 * width**2 + gated * width * inner) + width * (patch + tokens)
