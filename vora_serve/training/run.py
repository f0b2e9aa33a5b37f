"""The commands' work: from a resolved recipe to a checkpoint, or to what it would take."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from model_plugin import ConfigError, VoRAError
from model_plugin.checkpoint import Checkpoint
from model_plugin.export import merge_checkpoint
from vora_serve.training.build import (
    Plan,
    load_model,
    load_processor,
    load_teacher,
    plan_finetune,
    plan_pretrain,
)
from vora_serve.training.card import checkpoint_files
from vora_serve.training.data import SampleError, Tokeniser
from vora_serve.training.data_recipe import Data
from vora_serve.training.estimate import Estimate, estimate
from vora_serve.training.features import FeatureCache
from vora_serve.training.feed import HeldOutSet, check_division
from vora_serve.training.preflight import check_sources
from vora_serve.training.run_recipe import FinetuneRun, HeldOut, MergeRun, PretrainRun
from vora_serve.training.stages import finetune, pretrain

_MIB, _GIB = 2**20, 2**30


def run_pretrain(recipe: PretrainRun, *, overwrite: bool = False) -> Path:
    """Pretrain by a recipe; everything that can be wrong is said before weights are read.

    Raises:
        ConfigError, CheckpointError, SampleError: recipe, model or data do not fit.
    """
    plan = plan_pretrain(recipe)
    processor = load_processor(recipe.model, plan.images)
    tokeniser = Tokeniser(processor, recipe.max_length)
    _check_data(recipe, tokeniser)
    torch.manual_seed(recipe.optimisation.seed)
    teacher = load_teacher(recipe.teacher, plan) if recipe.teacher is not None else None
    model = load_model(recipe.model, plan, processor)
    cache = None
    if recipe.teacher is not None and recipe.teacher.cache is not None:
        folder = Path(recipe.teacher.cache)
        cache = FeatureCache(folder, int(recipe.teacher.cache_gb * 1e9))
    run = Path(recipe.run)
    return pretrain(
        model,
        processor,
        teacher,
        recipe.data,
        recipe,
        run,
        Path(recipe.out),
        cache=cache,
        held_out=_held_out(recipe.held_out, tokeniser, recipe.optimisation.micro_batch_size),
        files=lambda: checkpoint_files("pretrain", recipe, run),
        overwrite=overwrite,
    )


def run_finetune(recipe: FinetuneRun, *, overwrite: bool = False) -> Path:
    """Fine-tune by a recipe; everything that can be wrong is said before weights are read.

    Raises:
        ConfigError, CheckpointError, SampleError: recipe, model or data do not fit.
    """
    plan = plan_finetune(recipe)
    processor = load_processor(recipe.model, plan.images)
    tokeniser = Tokeniser(processor, recipe.max_length)
    _check_data(recipe, tokeniser)
    model = load_model(recipe.model, plan, processor)
    run = Path(recipe.run)
    return finetune(
        model,
        processor,
        recipe.data,
        recipe,
        run,
        Path(recipe.out),
        dtype=getattr(torch, recipe.out_dtype),
        held_out=_held_out(recipe.held_out, tokeniser, recipe.optimisation.micro_batch_size),
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
    out = merge_checkpoint(
        recipe.source,
        recipe.out,
        dtype=getattr(torch, recipe.dtype) if recipe.dtype is not None else None,
        max_shard_bytes=int(recipe.shard_gb * 1e9),
        files=checkpoint_files("merge", recipe, None),
        verify=recipe.verify,
        overwrite=overwrite,
    )
    if recipe.verify:
        yield "Merged and unmerged model agree on a probe."
    yield f"The merged checkpoint is in {out}."


def describe(recipe: PretrainRun | FinetuneRun, processes: int, tflops: float) -> str:
    """What a run would take: the resolved recipe, parameters, memory, work; and what is amiss.

    Args:
        recipe: the run.
        processes: that would share it.
        tflops: TFLOP/s that one of them attains.

    Raises:
        ConfigError, CheckpointError: recipe and model do not fit together.
    """
    settings = recipe.optimisation
    check_division(recipe.data, settings, processes)
    if isinstance(recipe, PretrainRun):
        plan = plan_pretrain(recipe)
        rank, teacher = recipe.lora_rank, recipe.teacher
        teacher_dtype = teacher.dtype if teacher is not None else "float32"
    else:
        plan, rank, teacher_dtype = plan_finetune(recipe), 0, "float32"
    made = estimate(
        plan,
        settings,
        lora_rank=rank,
        max_length=recipe.max_length,
        dtype=recipe.model.dtype,
        teacher_dtype=teacher_dtype,
        processes=processes,
    )
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    seconds = made.flops_per_step / (tflops * 1e12 * processes)
    total = sum(made.memory.values())
    lines = ["# The recipe as resolved", plain.rstrip(), "", "# Parameters"]
    for name, count in made.parameters.items():
        what = "trained" if name in made.trained else "frozen"
        lines.append(f"  {name:<18}{count:>16,}  {what}")
    lines.append(f"  {'trained in all':<18}{made.trained_parameters:>16,}")
    lines += ["", f"# Memory of each of {processes} process(es), about {_size(total)}"]
    lines += [f"  {name:<18}{_size(count):>16}" for name, count in made.memory.items() if count]
    lines += ["", "# Work, about"]
    lines += _work(recipe, made, seconds, settings.steps, processes, tflops)
    lines += ["", "# Data"] + [f"  {note}" for note in _data_notes(recipe, plan)]
    return "\n".join(lines) + "\n"


def describe_merge(recipe: MergeRun) -> str:
    """What a merge would do.

    Raises:
        CheckpointError: the source is no complete checkpoint.
    """
    checkpoint = Checkpoint.open(recipe.source)
    checkpoint.check()
    biases = len(checkpoint.config.extra_biases or [])
    plain = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return (
        f"# The recipe as resolved\n{plain}\n# The source\n"
        f"  {len(checkpoint.files)} tensors, {len(checkpoint.lora_modules)} layers with LoRA, "
        f"{biases} biases that the LLM's architecture lacks (kept)\n"
    )


def _work(
    recipe: PretrainRun | FinetuneRun,
    made: Estimate,
    seconds: float,
    steps: int,
    processes: int,
    tflops: float,
) -> list[str]:
    settings = recipe.optimisation
    what = "sequences" if recipe.data.pack else "samples"
    seen = steps * settings.batch_size
    return [
        f"  {steps:,} steps of {settings.batch_size} {what}: {seen:,} in all",
        f"  at most {made.tokens_per_step:,} tokens and {made.flops_per_step / 1e12:,.2f} TFLOP "
        "a step",
        f"  {seconds:,.2f} s a step, {seconds * steps / 3600:,.1f} h in all, where {processes} "
        f"process(es) attain {tflops:g} TFLOP/s each",
    ]


def _data_notes(recipe: PretrainRun | FinetuneRun, plan: Plan) -> list[str]:
    """How the data looks, or what is missing: a dry run needs none of it."""
    try:
        processor = load_processor(recipe.model, plan.images)
        mean = check_sources(recipe.data, Tokeniser(processor, recipe.max_length))
    except (VoRAError, OSError) as error:
        return [f"not looked at: {error}"]
    notes = []
    for source in recipe.data.sources:
        kind, files = source.resolve()
        size = sum(file.stat().st_size for file in files)
        notes.append(f"{len(files)} {kind} file(s), {_size(size)}, weight {source.weight:g}")
    return [*notes, f"the first samples have {mean:.0f} tokens on average"]


def _check_data(recipe: PretrainRun | FinetuneRun, tokeniser: Tokeniser) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    check_division(recipe.data, recipe.optimisation, processes)
    check_sources(recipe.data, tokeniser)
    if recipe.held_out is not None:
        check_sources(Data(sources=recipe.held_out.sources), tokeniser)


def _held_out(
    settings: HeldOut | None, tokeniser: Tokeniser, batch_size: int | None
) -> HeldOutSet | None:
    if settings is None:
        return None
    data = Data(sources=settings.sources, shuffle_buffer=settings.samples)
    try:
        return HeldOutSet(data, tokeniser, settings.samples, settings.every, batch_size or 8)
    except SampleError as error:
        raise ConfigError(f"The held-out samples cannot be read: {error}") from error


def _size(count: int) -> str:
    return f"{count / _GIB:,.2f} GiB" if count >= _GIB else f"{count / _MIB:,.1f} MiB"
