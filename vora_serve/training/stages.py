"""The two stages of training: LoRA pretraining with distillation, and fine-tuning once merged."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_plugin import ConfigError, VoRAForCausalLM, VoRAProcessor
from model_plugin.export import export_checkpoint
from vora_serve.training.blocks import Blocks, choose_blocks
from vora_serve.training.data import SampleSource
from vora_serve.training.data_recipe import Data
from vora_serve.training.distill import Teacher
from vora_serve.training.embedder import init_embedder
from vora_serve.training.encoder import EncoderEmbedding
from vora_serve.training.features import FeatureCache
from vora_serve.training.held_out import HeldOutSet
from vora_serve.training.identity import Identity, parts_identity, recipe_identity
from vora_serve.training.llava import export_llava
from vora_serve.training.loop import train
from vora_serve.training.lora import attach_lora, check_trainable
from vora_serve.training.recipe import (
    Distillation,
    FinetuneRecipe,
    PretrainRecipe,
    Recipe,
)
from vora_serve.training.result import (
    CHECKPOINTS,
    check_output,
    export,
    finish,
    pretraining_tensors,
)
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
    _check_dtypes(model, recipe)
    check_output(out, overwrite, run=run_dir)
    identity = recipe_identity(recipe) | parts_identity(model.llm, teacher, processor)
    torch.manual_seed(recipe.optimisation.seed)
    if teacher is not None:
        init_embedder(model, teacher)
    options = StepOptions.of(recipe, cache)
    module = TrainingModel(model, teacher, recipe.distillation, options, blocks.distilled)
    if blocks.lora:
        attach_lora(model, recipe.lora_rank, blocks.lora)
        check_trainable(module, ("lora_", "vision_embedding", "aux_layer_"))
    else:
        _keep_float32(model.requires_grad_(True))
    model.config.aux_vision = type(teacher.vision).__name__ if teacher else ""

    def write(folder: Path, replace: bool) -> None:
        export(
            pretraining_tensors(model, module.aux_vision if blocks.lora else None),
            lambda tensors: export_checkpoint(
                folder,
                model.config,
                tensors,
                processor,
                merged=not blocks.lora,
                files=files() if callable(files) else files,
                overwrite=replace,
            ),
            sharded=recipe.optimisation.sharding != "none",
        )

    return _train(
        "pretrain", module, processor, samples, recipe, run_dir, out, identity, held_out, write,
        overwrite,
    )  # fmt: skip


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

    A model with a vision tower in the embedder's place (:mod:`vora_serve.training.encoder`) is
    trained in the same way, and exported as a LLaVA checkpoint.

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
    check_output(out, overwrite, run=run_dir)
    dtype = dtype or model.dtype
    identity = recipe_identity(recipe) | parts_identity(model, None, processor)
    torch.manual_seed(recipe.optimisation.seed)
    model.requires_grad_(True)
    _freeze(model, recipe.freeze)
    _keep_float32(model)
    _check_dtypes(model, recipe)
    module = TrainingModel(model, None, Distillation(mode="none"), StepOptions.of(recipe))

    def write(folder: Path, replace: bool) -> None:
        texts = files() if callable(files) else files
        kept: dict[str, Any] = {"dtype": dtype, "files": texts, "overwrite": replace}
        export(
            iter(model.state_dict().items()),
            lambda tensors: (
                export_llava(folder, model, tensors, processor, **kept)
                if isinstance(model.vision_embedding, EncoderEmbedding)
                else export_checkpoint(folder, model.config, tensors, processor, **kept)
            ),
            sharded=recipe.optimisation.sharding != "none",
        )

    return _train(
        "finetune", module, processor, samples, recipe, run_dir, out, identity, held_out, write,
        overwrite,
    )  # fmt: skip


def _train(
    name: str,
    module: TrainingModel,
    processor: VoRAProcessor,
    samples: SampleSource | Data,
    recipe: Recipe,
    run_dir: Path,
    out: Path,
    identity: Identity,
    held_out: HeldOutSet | None,
    write: Callable[[Path, bool], None],
    overwrite: bool,
) -> Path:
    """Train, with the checkpoints on the way that the recipe asks for, and write the result."""
    kept = run_dir / CHECKPOINTS
    state = train(
        module,
        processor,
        samples,
        recipe.optimisation,
        max_length=recipe.max_length,
        out_dir=run_dir,
        name=name,
        identity=identity,
        held_out=held_out,
        snapshot=lambda step: write(kept / f"step-{step:06d}", True),
    )
    finish(state, lambda: write(out, overwrite))
    return out


def _keep_float32(model: nn.Module) -> None:
    """Hold what trains in float32, whatever it computes in.

    A bfloat16 weight has 8 bits: most updates of a fine-tune are smaller than half its last one,
    and would be rounded away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _check_dtypes(model: nn.Module, recipe: Recipe) -> None:
    half = {p.dtype for p in model.parameters()} - {torch.float32}
    if half and not recipe.optimisation.bf16:
        raise ConfigError(
            f"The model's weights are {str(half.pop()).removeprefix('torch.')}; training with them "
            "needs optimisation.bf16=true."
        )


def _freeze(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    for prefix in prefixes:
        chosen = [p for name, p in model.named_parameters() if name.startswith(prefix)]
        if not chosen:
            raise ConfigError(f"Nothing to freeze is called {prefix}.")
        for parameter in chosen:
            parameter.requires_grad_(False)
