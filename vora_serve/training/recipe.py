"""Recipes: everything a training run depends on, typed, from YAML with ``key=value`` overrides."""

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vora_core import typed_yaml

R = TypeVar("R", bound=BaseModel)
Attention = Literal["bidirectional", "global", "causal"]


class Strict(BaseModel):
    """Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Optimisation(Strict):
    """How weights are updated.

    Attributes:
        steps: optimizer steps.
        batch_size: samples in a step, on all processes together.
        micro_batch_size: samples in one forward pass; the whole batch when absent.
        lr: peak learning rate.
        embedder_lr: the patch embedder's; ``lr`` when absent.
        schedule: ``constant`` or ``cosine``, after the warm-up.
        final_lr: learning rate at the end of ``cosine``, as a share of ``lr``.
        warmup_steps: steps of linear warm-up.
        optimizer: ``adamw``, or ``muon`` for matrices inside the LLM with ``adamw`` for the rest.
        weight_decay: decoupled weight decay.
        betas: AdamW's.
        max_grad_norm: gradients are scaled down to this norm.
        seed: of initialisation and of the order of samples.
        workers: processes that prepare batches.
        log_every, save_every: in steps; ``save_every`` 0 saves a state only where a run stops.
        export_every: in steps; a complete checkpoint is kept in ``RUN/checkpoints`` each time; 0
            keeps the result alone.
        max_nonfinite_steps: steps in a row whose loss or gradients are not finite after which a
            run stops; fewer are skipped and counted.
        bf16: compute in bfloat16 (autocast); weights that train are float32.
        gradient_checkpointing: compute activations again in the backward pass.
        compile: have torch.compile make the LLM's blocks faster; needs a C++ compiler on CPU.
        loss_chunk: targets whose logits are held at a time; all of a micro-batch when absent.
        sharding: ``none`` (every process has everything), ``zero1`` (DeepSpeed: optimizer states
            are sharded) or ``fsdp2`` (torch's fully_shard: weights and gradients as well).
        tensorboard: write event files beside the metrics.
        wandb: project to report to; nowhere when absent.
    """

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    lr: float = Field(gt=0)
    embedder_lr: float | None = Field(default=None, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: float = Field(default=0.0, ge=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    workers: int = Field(default=0, ge=0)
    log_every: int = Field(default=10, gt=0)
    save_every: int = Field(default=0, ge=0)
    export_every: int = Field(default=0, ge=0)
    max_nonfinite_steps: int = Field(default=3, gt=0)
    bf16: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    loss_chunk: int | None = Field(default=None, gt=0)
    sharding: Literal["none", "zero1", "fsdp2"] = "none"
    tensorboard: bool = False
    wandb: str | None = None

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self


class Distillation(Strict):
    """What the LLM's blocks learn from the teacher's (section 3.2).

    Attributes:
        mode: ``block-wise`` aligns each of the first N_vit blocks, ``last-block`` only the last of
            them, ``none`` nothing.
        alignment: ``paper`` compares outputs of block i (equations 1 and 2); ``released`` compares
            inputs of block i, as the public code does.
        weight: factor on the distillation loss (1 in equation 4).
    """

    mode: Literal["block-wise", "last-block", "none"] = "block-wise"
    alignment: Literal["paper", "released"] = "paper"
    weight: float = Field(default=1.0, ge=0)


class PretrainRecipe(Strict):
    """LoRA pretraining with distillation (sections 3.1 to 3.3).

    Attributes:
        trains: ``lora``, on a frozen LLM (section 3.1), or ``llm``, the whole LLM without LoRA,
            which gives a merged checkpoint.
        lora_rank: rank of the LoRA factors; alpha equals it, so their scale is 1.
        n_vit: number of LLM blocks that get LoRA; the teacher's depth when absent.
        max_length: samples of more tokens are refused; packed sequences have as many.
        attention: ``bidirectional``, ``global`` or ``causal``, explained in
            :mod:`vora_serve.training.attention`; the model's own when absent.
    """

    optimisation: Optimisation
    distillation: Distillation = Distillation()
    trains: Literal["lora", "llm"] = "lora"
    lora_rank: int = Field(default=1024, gt=0)
    n_vit: int | None = Field(default=None, gt=0)
    max_length: int = Field(default=2048, gt=0)
    attention: Attention | None = None


class FinetuneRecipe(Strict):
    """Fine-tuning of the merged model: LLM and embedder train, nothing is distilled.

    Attributes:
        max_length: samples of more tokens are refused; packed sequences have as many.
        freeze: name prefixes of parameters that stay as they are; none unless asked.
        attention: as in :class:`PretrainRecipe`.
    """

    optimisation: Optimisation
    max_length: int = Field(default=2048, gt=0)
    attention: Attention | None = None
    freeze: tuple[str, ...] = ()


Recipe = PretrainRecipe | FinetuneRecipe


def read_recipe(kind: type[R], file: Path, overrides: list[str]) -> R:
    """A recipe from a YAML file.

    A file may begin with ``base: OTHER.yaml``, a file beside it whose sections it changes.

    Args:
        kind: the recipe's class.
        file: the file.
        overrides: ``key=value``, with dots for nested keys; values are YAML.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; the sentence names it.
    """
    return typed_yaml.load(kind, file, overrides, subject="recipe", based=True)


def parse_recipe(kind: type[R], data: Any) -> R:
    """A recipe from plain data.

    Raises:
        ConfigError: a key or value is wrong; the sentence names it.
    """
    return typed_yaml.validate(kind, data, subject="recipe")
