"""``--dry-run``: what a run would do and what it would take, without reading a weight."""

import yaml

from model_plugin import ConfigError, VoRAError
from model_plugin.adapted import open_source
from vora_serve.training.data import Tokeniser
from vora_serve.training.estimate import Estimate, estimate
from vora_serve.training.loader import check_division
from vora_serve.training.plan import Plan, plan_finetune, plan_pretrain
from vora_serve.training.preflight import check_sources
from vora_serve.training.processor import load_processor
from vora_serve.training.run_recipe import FinetuneRun, MergeRun, PretrainRun
from vora_serve.training.sources import reading
from vora_serve.training.twin import has_encoder

_MIB, _GIB = 2**20, 2**30
#: Times that a pass may read the data before something is said of it.
_TOO_MUCH = 1.2


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
        plan, rank, teacher = plan_pretrain(recipe), recipe.lora_rank, recipe.teacher
        teacher_dtype = teacher.dtype if teacher is not None else "float32"
    elif has_encoder(recipe):
        raise ConfigError("--dry-run does not cover models with an encoder.")
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
    lines += ["", "# Data"] + [f"  {note}" for note in _data_notes(recipe, plan, processes)]
    return "\n".join(lines) + "\n"


def describe_merge(recipe: MergeRun) -> str:
    """What a merge would do.

    Raises:
        CheckpointError: the source is no complete checkpoint.
    """
    checkpoint = open_source(recipe.source, recipe.base)
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


def _data_notes(recipe: PretrainRun | FinetuneRun, plan: Plan, processes: int) -> list[str]:
    """How the data looks, or what is missing: a dry run needs none of it."""
    try:
        processor = load_processor(recipe.model, plan.images)
        mean = check_sources(recipe.data, Tokeniser(processor, recipe.max_length))
    except (VoRAError, OSError) as error:
        return [f"not looked at: {error}"]
    settings, shards = recipe.optimisation, recipe.data.shards
    readers = processes * (settings.workers or 1)
    notes = []
    for source in recipe.data.sources:
        kind, files = source.resolve()
        if kind == "world":
            notes.append(
                f"the {source.split} split of the wide world, drawn, weight {source.weight:g}"
            )
            continue
        size = sum(file.stat().st_size for file in files)
        notes.append(f"{len(files)} {kind} file(s), {_size(size)}, weight {source.weight:g}")
        times = reading(source, settings.seed, shards, readers)
        notes.append(
            f"  a pass reads {_size(int(times * size))}, {times:.2f} times the data, in {shards} "
            f"shards by {readers} reader(s)"
        )
        if kind == "jsonl":
            notes.append("  each process first reads through the files once, to find their records")
        if times > _TOO_MUCH:
            notes.append(
                "  readers share row groups, which each reads whole; fewer optimisation.workers or "
                "smaller row groups help"
            )
    return [*notes, f"the first samples have {mean:.0f} tokens on average"]


def _size(count: int) -> str:
    return f"{count / _GIB:,.2f} GiB" if count >= _GIB else f"{count / _MIB:,.1f} MiB"
