"""The training loop: the same for pretraining and fine-tuning, on one process or many."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from model_plugin import VoRAProcessor
from vora_serve.training.data import Batch, SampleSource, Tokeniser
from vora_serve.training.data_recipe import Data
from vora_serve.training.feed import SKIPPED_FILE, make_feed
from vora_serve.training.held_out import HeldOutSet
from vora_serve.training.metrics import METRICS_FILE, Metrics
from vora_serve.training.optim import make_schedule
from vora_serve.training.parallel import Strategy, make_strategy
from vora_serve.training.recipe import Optimisation
from vora_serve.training.state import STATE_FOLDER, RunState
from vora_serve.training.step import TrainingModel, compile_blocks


def train(
    module: TrainingModel,
    processor: VoRAProcessor,
    samples: SampleSource | Data,
    settings: Optimisation,
    *,
    max_length: int,
    out_dir: Path,
    name: str,
    held_out: HeldOutSet | None = None,
) -> RunState:
    """Train a model in place.

    A run that was cut off goes on from its last saved state as if it had not been: a step's samples
    follow from its number, or from the saved place in the data.

    Args:
        module: model, teacher and heads; what requires gradients is trained.
        processor: tokenises samples.
        samples: where they come from: by number, or a recipe's data section.
        settings: the recipe's.
        max_length: most tokens of a sample.
        out_dir: gets ``metrics.jsonl`` (a line every ``log_every`` steps), ``skipped.jsonl`` with
            broken samples and, while the run lasts, ``state/``.
        name: shown at the progress bar and in the metrics.
        held_out: what the run is evaluated on while it lasts.

    Returns:
        The run's state; the caller removes it when the result is safe on disk.

    Raises:
        SampleError: a sample cannot be trained on, or too many of a stream's were broken.
        CheckpointError: a saved state does not fit this run, or could not be written.
        ConfigError: processes, lanes and batch do not divide.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    module.to(accelerator.device)
    if settings.gradient_checkpointing:
        module.model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.compile:
        compile_blocks(module)
    strategy = make_strategy(module, settings, accelerator)
    schedule = make_schedule(settings)
    base_lrs = [[g["lr"] for g in optimizer.param_groups] for optimizer in strategy.optimizers]
    stream = samples if isinstance(samples, Data) else None
    state = RunState(out_dir / STATE_FOLDER, strategy, settings, accelerator, stream)
    start = state.load()
    module.train()
    feed = make_feed(
        samples,
        Tokeniser(processor, max_length),
        settings,
        start=start,
        states=state.lanes,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        dense=module.model.llm.config._attn_implementation in ("sdpa", "eager"),
        report=out_dir / SKIPPED_FILE if accelerator.is_main_process else None,
    )
    report_file = out_dir / METRICS_FILE
    with Metrics(report_file, name, start, settings, accelerator.is_main_process) as metrics:
        for step, batches in enumerate(feed, start):
            for optimizer, lrs in zip(strategy.optimizers, base_lrs, strict=True):
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * schedule(step)
            losses = _accumulate(strategy, module, batches, accelerator)
            losses["grad_norm"] = strategy.step()
            losses["lr"] = settings.lr * schedule(step)
            metrics.add(step, losses, batches, feed.skipped)
            done = step + 1
            if held_out is not None and (done % held_out.every == 0 or done == settings.steps):
                found = held_out.evaluate(module, accelerator.device)
                metrics.write({"stage": f"{name}, held out", "step": done} | found)
            if settings.save_every and done % settings.save_every == 0 and done < settings.steps:
                state.save(done, feed.state())
    return state


def _accumulate(
    strategy: Strategy,
    module: TrainingModel,
    batches: list[Batch],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Gradients of a whole step, micro-batch by micro-batch; each token weighs the same.

    Returns:
        ``loss`` (equation 4), ``lm``, ``distill`` and ``aux_i`` of the step.
    """
    device = accelerator.device
    totals = torch.tensor(
        [
            sum(int((batch.labels[:, 1:] >= 0).sum()) for batch in batches),
            sum(int(batch.image_mask.sum()) for batch in batches),
        ],
        device=device,
        dtype=torch.float64,
    )
    targets, image_tokens = accelerator.reduce(totals, reduction="sum").tolist()
    sums: dict[str, float] = {}
    if image_tokens:
        # Of a step with images, also where this process has none: the sums are added up below.
        sums |= {f"aux_{block}": 0.0 for block in module.blocks}
    for number, batch in enumerate(batches, 1):
        losses = strategy.forward(batch.to(device), last=number == len(batches))
        sums["lm"] = sums.get("lm", 0.0) + float(losses["lm"].detach()) / max(targets, 1)
        loss = losses["lm"] / max(targets, 1)
        if "image_tokens" in losses:
            share = losses["image_tokens"] / image_tokens
            aux = {k: v * share for k, v in losses.items() if k.startswith("aux_")}
            for key, value in aux.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
            loss = loss + module.settings.weight * torch.stack(list(aux.values())).mean()
        strategy.backward(loss)
    if accelerator.num_processes > 1:
        keys = sorted(sums)
        values = torch.tensor([sums[k] for k in keys], device=device, dtype=torch.float64)
        sums = dict(zip(keys, accelerator.reduce(values, reduction="sum").tolist(), strict=True))
    blocks = [value for key, value in sums.items() if key.startswith("aux_")]
    distill = sum(blocks) / len(blocks) if blocks else 0.0
    weighted = module.settings.weight * distill
    return {"loss": sums["lm"] + weighted, "lm": sums["lm"], "distill": distill} | sums
