"""The offline pipeline: LoRA pretraining with block-wise distillation, merge, fine-tune."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vora_serve.training.data import Sample, SampleSource
    from vora_serve.training.distill import Teacher
    from vora_serve.training.labels import SampleError
    from vora_serve.training.recipe import (
        Distillation,
        FinetuneRecipe,
        Optimisation,
        PretrainRecipe,
        parse_recipe,
        read_recipe,
    )
    from vora_serve.training.stages import finetune, pretrain

__all__ = [
    "Distillation",
    "FinetuneRecipe",
    "Optimisation",
    "PretrainRecipe",
    "Sample",
    "SampleError",
    "SampleSource",
    "Teacher",
    "finetune",
    "parse_recipe",
    "pretrain",
    "read_recipe",
]

_LAZY = {
    "data": ("Sample", "SampleSource"),
    "labels": ("SampleError",),
    "distill": ("Teacher",),
    "recipe": (
        "Distillation", "FinetuneRecipe", "Optimisation", "PretrainRecipe", "parse_recipe",
        "read_recipe",
    ),
    "stages": ("finetune", "pretrain"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name when it is used: ``vora-serve pretrain --help`` must not wait for torch."""
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
