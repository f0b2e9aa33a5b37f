"""The commands' work: from a recipe to a checkpoint."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from model_plugin.export import merge_checkpoint
from vora_serve.training.build import load_model, load_teacher
from vora_serve.training.card import checkpoint_files
from vora_serve.training.data import Tokeniser
from vora_serve.training.dry_run import describe, describe_merge
from vora_serve.training.features import FeatureCache
from vora_serve.training.identity import recipe_identity
from vora_serve.training.loader import check_division
from vora_serve.training.plan import plan_finetune, plan_pretrain
from vora_serve.training.preflight import check_data
from vora_serve.training.processor import load_processor
from vora_serve.training.result import check_output
from vora_serve.training.run_recipe import FinetuneRun, MergeRun, PretrainRun
from vora_serve.training.stages import finetune, pretrain_blocks
from vora_serve.training.state import check_resume
from vora_serve.training.twin import has_encoder, load_twin, plan_twin

__all__ = ["describe", "describe_merge", "finish", "run_finetune", "run_merge", "run_pretrain"]


def run_pretrain(recipe: PretrainRun, *, overwrite: bool = False) -> Path:
    """Pretrain by a recipe; everything that can be wrong is said before weights are read.

    Raises:
        ConfigError, CheckpointError, SampleError: recipe, model or data do not fit.
    """
    plan = plan_pretrain(recipe)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    check_division(recipe.data, recipe.optimisation, processes)
    run = Path(recipe.run)
    check_output(Path(recipe.out), overwrite, run=run, source=recipe.model.path)
    check_resume(run, recipe_identity(recipe), recipe.optimisation.sharding, processes)
    processor = load_processor(recipe.model, plan.images)
    held_out = check_data(recipe, Tokeniser(processor, recipe.max_length))
    torch.manual_seed(recipe.optimisation.seed)
    teacher = load_teacher(recipe.teacher, plan) if recipe.teacher is not None else None
    model = load_model(recipe.model, plan, processor)
    return pretrain_blocks(
        plan.blocks,
        model,
        processor,
        teacher,
        recipe.data,
        recipe,
        run,
        Path(recipe.out),
        cache=FeatureCache.of(recipe.teacher),
        held_out=held_out,
        files=lambda: checkpoint_files("pretrain", recipe, run),
        overwrite=overwrite,
    )


def run_finetune(recipe: FinetuneRun, *, overwrite: bool = False) -> Path:
    """Fine-tune by a recipe; everything that can be wrong is said before weights are read.

    Raises:
        ConfigError, CheckpointError, SampleError: recipe, model or data do not fit.
    """
    plan = plan_twin(recipe) if has_encoder(recipe) else plan_finetune(recipe)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    check_division(recipe.data, recipe.optimisation, processes)
    run = Path(recipe.run)
    check_output(Path(recipe.out), overwrite, run=run, source=recipe.model.path)
    check_resume(run, recipe_identity(recipe), recipe.optimisation.sharding, processes)
    processor = load_processor(recipe.model, plan.images)
    held_out = check_data(recipe, Tokeniser(processor, recipe.max_length))
    torch.manual_seed(recipe.optimisation.seed)
    model = (
        load_twin(recipe, plan, processor)
        if has_encoder(recipe)
        else load_model(recipe.model, plan, processor)
    )
    return finetune(
        model,
        processor,
        recipe.data,
        recipe,
        run,
        Path(recipe.out),
        dtype=getattr(torch, recipe.out_dtype),
        held_out=held_out,
        files=lambda: checkpoint_files("finetune", recipe, run),
        overwrite=overwrite,
    )


def finish() -> None:
    """Take leave of the other processes of a run."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_merge(recipe: MergeRun, *, overwrite: bool = False) -> Iterator[str]:
    """Merge by a recipe; yields what happened, a sentence at a time.

    Raises:
        CheckpointError: the source is no complete checkpoint, or the result does not agree with it.
    """
    check_output(Path(recipe.out), overwrite, source=recipe.source)
    out = merge_checkpoint(
        recipe.source,
        recipe.out,
        base=recipe.base,
        dtype=getattr(torch, recipe.dtype) if recipe.dtype is not None else None,
        max_shard_bytes=int(recipe.shard_gb * 1e9),
        files=checkpoint_files("merge", recipe, None),
        verify=recipe.verify,
        overwrite=overwrite,
    )
    if recipe.verify:
        yield "Merged and unmerged model agree on a probe."
    yield f"The merged checkpoint is in {out}."
