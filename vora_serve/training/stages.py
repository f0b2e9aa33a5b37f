"""The two stages of training: LoRA pretraining with distillation, and fine-tuning once merged."""

from pathlib import Path

import torch
from torch import nn

from model_plugin import ConfigError, VoRAForCausalLM, VoRAProcessor
from model_plugin.export import export_checkpoint
from vora_serve.training.data import SampleSource
from vora_serve.training.distill import Teacher, init_embedder
from vora_serve.training.loop import main_process_first, train
from vora_serve.training.lora import attach_lora, check_trainable, released_tensors
from vora_serve.training.recipe import Distillation, FinetuneRecipe, PretrainRecipe
from vora_serve.training.step import TrainingModel


def pretrain(
    model: VoRAForCausalLM,
    processor: VoRAProcessor,
    teacher: Teacher | None,
    samples: SampleSource,
    recipe: PretrainRecipe,
    run_dir: Path,
    out: Path,
    *,
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
        overwrite: replace ``out``.

    Returns:
        ``out``; ``model_plugin.export.merge_checkpoint`` merges it.

    Raises:
        ConfigError: recipe, teacher and model do not fit together.
        SampleError: a sample cannot be trained on.
    """
    n_vit = recipe.n_vit or (teacher.depth if teacher else model.config.num_hidden_layers)
    torch.manual_seed(recipe.optimisation.seed)
    if teacher is not None:
        init_embedder(model, teacher)
    module = TrainingModel(model, teacher, recipe.distillation)
    attach_lora(model, recipe.lora_rank, n_vit)
    check_trainable(module, ("lora_", "vision_embedding", "aux_layer_"))
    train(
        module,
        processor,
        samples,
        recipe.optimisation,
        max_length=recipe.max_length,
        out_dir=run_dir,
        name="pretrain",
    )
    model.config.aux_vision = type(teacher.vision).__name__ if teacher else ""
    with main_process_first() as writes:
        if writes:
            export_checkpoint(
                out,
                model.config,
                released_tensors(model, module.aux_vision),
                processor,
                merged=False,
                overwrite=overwrite,
            )
    return out


def finetune(
    model: VoRAForCausalLM,
    processor: VoRAProcessor,
    samples: SampleSource,
    recipe: FinetuneRecipe,
    run_dir: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    files: dict[str, str] | None = None,
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
        files: further text files for it.
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
    module = TrainingModel(model, None, Distillation(mode="none"))
    train(
        module,
        processor,
        samples,
        recipe.optimisation,
        max_length=recipe.max_length,
        out_dir=run_dir,
        name="finetune",
    )
    with main_process_first() as writes:
        if writes:
            export_checkpoint(
                out,
                model.config,
                iter(model.state_dict().items()),
                processor,
                dtype=dtype,
                files=files,
                overwrite=overwrite,
            )
    return out


def _freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    for prefix in prefixes:
        chosen = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not chosen:
            raise ConfigError(f"Nothing to freeze is called {prefix}.")
        for parameter in chosen:
            parameter.requires_grad_(False)
