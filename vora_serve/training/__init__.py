"""The offline pipeline: LoRA pretraining with block-wise distillation, merge, fine-tune."""

from vora_serve.training.data import Sample, SampleError, SampleSource
from vora_serve.training.distill import Teacher
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
