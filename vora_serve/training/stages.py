"""The two stages of training: LoRA pretraining with distillation, and fine-tuning once merged."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from model_plugin import ConfigError, VoRAForCausalLM, VoRAProcessor
from model_plugin.export import export_checkpoint
from vora_serve.training.blocks import Blocks, choose_blocks
from vora_serve.training.data import SampleSource
from vora_serve.training.data_recipe import Data
from vora_serve.training.distill import Teacher
from vora_serve.training.embedder import init_embedder
from vora_serve.training.features import FeatureCache
from vora_serve.training.held_out import HeldOutSet
from vora_serve.training.loop import train
from vora_serve.training.lora import attach_lora, check_trainable
from vora_serve.training.recipe import Distillation, FinetuneRecipe, PretrainRecipe
from vora_serve.training.result import export, pretraining_tensors
from vora_serve.training.step import StepOptions, TrainingModel

Files = Mapping[str, str] | Callable[[], Mapping[str, str]]


def pretrain(
    model: VoRAForCausalLM,
    processor: VoRAProcessor,
    teacher: Teacher | None,
    samples: SampleSource | Data,
    recipe: PretrainRecipe,
    run_dir: Path,
    out: Path,
    *,
    cache: FeatureCache | None = None,
    held_out: HeldOutSet | None = None,
    files: Files | None = None,
    overwrite: bool = False,
) -> Path:
    """Teach a frozen LLM to see: LoRA, embedder and auxiliary heads train (section 3).

    Args:
        model: the LLM with a fresh embedder; gets LoRA layers in place.
        processor: of fixed resolution when there is a teacher.
        teacher: what is distilled from; also initialises the embedder.
        samples: images with captions or questions, and text, mixed.
        recipe: the run.
        run_dir: gets metrics and, while the run lasts, its state.
        out: gets the pretraining checkpoint, LoRA factors beside the base weights.
        cache: the teacher's states on disk.
        held_out: what the run is evaluated on while it lasts.
        files: further text files for the checkpoint, or what makes them once it is trained.
        overwrite: replace ``out``.

    Returns:
        ``out``; ``model_plugin.export.merge_checkpoint`` merges it.

    Raises:
        ConfigError: recipe, teacher and model do not fit together.
        SampleError: a sample cannot be trained on.
    """
    depth = teacher.depth if teacher is not None else None
    return pretrain_blocks(
        choose_blocks(recipe, depth, model.config.num_hidden_layers),
        model,
        processor,
        teacher,
        samples,
        recipe,
        run_dir,
        out,
        cache=cache,
        held_out=held_out,
        files=files,
        overwrite=overwrite,
    )


def pretrain_blocks(
    blocks: Blocks,
    model: VoRAForCausalLM,
    processor: VoRAProcessor,
    teacher: Teacher | None,
    samples: SampleSource | Data,
    recipe: PretrainRecipe,
    run_dir: Path,
    out: Path,
    *,
    cache: FeatureCache | None = None,
    held_out: HeldOutSet | None = None,
    files: Files | None = None,
    overwrite: bool = False,
) -> Path:
    """As :func:`pretrain`, where it is known which blocks get LoRA and which are distilled."""
    torch.manual_seed(recipe.optimisation.seed)
    if teacher is not None:
        init_embedder(model, teacher)
    options = StepOptions.of(recipe, cache)
    module = TrainingModel(model, teacher, recipe.distillation, options, blocks.distilled)
    attach_lora(model, recipe.lora_rank, blocks.lora)
    check_trainable(module, ("lora_", "vision_embedding", "aux_layer_"))
    state = train(
        module,
        processor,
        samples,
        recipe.optimisation,
        max_length=recipe.max_length,
        out_dir=run_dir,
        name="pretrain",
        held_out=held_out,
    )
    model.config.aux_vision = type(teacher.vision).__name__ if teacher else ""
    export(
        state,
        pretraining_tensors(model, module.aux_vision),
        lambda tensors: export_checkpoint(
            out,
            model.config,
            tensors,
            processor,
            merged=False,
            files=files() if callable(files) else files,
            overwrite=overwrite,
        ),
    )
    return out


def finetune(
    model: VoRAForCausalLM,
    processor: VoRAProcessor,
    samples: SampleSource | Data,
    recipe: FinetuneRecipe,
    run_dir: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    held_out: HeldOutSet | None = None,
    files: Files | None = None,
    overwrite: bool = False,
) -> Path:
    """Train the whole merged model: LLM and embedder (section 4.1).

    Args:
        model: a merged model; changed in place.
        processor: fixed or native resolution; native may be adopted only here.
        samples: conversations about images, and text.
        recipe: the run.
        run_dir: gets metrics and, while the run lasts, its state.
        out: gets the checkpoint.
        dtype: dtype of its weights; the model's when absent.
        held_out: what the run is evaluated on while it lasts.
        files: further text files for it, or what makes them once it is trained.
        overwrite: replace ``out``.

    Raises:
        ConfigError: the model is not merged, or a name to freeze matches nothing.
        SampleError: a sample cannot be trained on.
    """
    if not model.config.is_merged:
        raise ConfigError("Fine-tuning needs a merged checkpoint; run vora-serve merge first.")
    torch.manual_seed(recipe.optimisation.seed)
    model.requires_grad_(True)
    _freeze(model, recipe.freeze)
    module = TrainingModel(model, None, Distillation(mode="none"), StepOptions.of(recipe))
    state = train(
        module,
        processor,
        samples,
        recipe.optimisation,
        max_length=recipe.max_length,
        out_dir=run_dir,
        name="finetune",
        held_out=held_out,
    )
    export(
        state,
        iter(model.state_dict().items()),
        lambda tensors: export_checkpoint(
            out,
            model.config,
            tensors,
            processor,
            dtype=dtype,
            files=files() if callable(files) else files,
            overwrite=overwrite,
        ),
    )
    return out


def _freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    for prefix in prefixes:
        chosen = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not chosen:
            raise ConfigError(f"Nothing to freeze is called {prefix}.")
        for parameter in chosen:
            parameter.requires_grad_(False)
