"""The training loop: the same for pretraining and fine-tuning, on one process or many."""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch.utils.data import DataLoader, SequentialSampler
from tqdm import tqdm

from model_plugin import CheckpointError, VoRAProcessor
from vora_serve.training.data import Batch, BatchSource, SampleSource, Tokeniser
from vora_serve.training.optim import make_optimizers, make_schedule
from vora_serve.training.recipe import Optimisation
from vora_serve.training.step import TrainingModel

METRICS_FILE = "metrics.jsonl"
STATE_FOLDER = "state"


def train(
    module: TrainingModel,
    processor: VoRAProcessor,
    samples: SampleSource,
    settings: Optimisation,
    *,
    max_length: int,
    out_dir: Path,
    name: str,
) -> None:
    """Train a model in place.

    Every step's samples follow from its number, so a run that was cut off goes on from its last
    saved state as if it had not been.

    Args:
        module: model, teacher and heads; what requires gradients is trained.
        processor: tokenises samples.
        samples: where they come from.
        settings: the recipe's.
        max_length: most tokens of a sample.
        out_dir: gets ``metrics.jsonl`` (a line every ``log_every`` steps) and, while the run lasts,
            ``state/``.
        name: shown at the progress bar and in the metrics.

    Raises:
        SampleError: a sample cannot be trained on.
        CheckpointError: a saved state does not fit this run.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    optimizers = make_optimizers(module, settings)
    schedule = make_schedule(settings)
    base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    state = RunState(out_dir / STATE_FOLDER, module, optimizers, settings)
    start = state.load()
    wrapped = accelerator.prepare_model(module) if accelerator.num_processes > 1 else module
    wrapped.to(accelerator.device).train()
    source = BatchSource(
        samples,
        Tokeniser(processor, max_length),
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size or settings.batch_size,
        steps=settings.steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    metrics = Metrics(out_dir / METRICS_FILE, name, start, settings, accelerator.is_main_process)
    for step, batches in enumerate(_steps(source, start, settings), start):
        for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * schedule(step)
        losses = _accumulate(wrapped, module, batches, accelerator)
        trained = [p for p in module.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses["grad_norm"] = float(norm)
        losses["lr"] = settings.lr * schedule(step)
        metrics.add(step, losses, batches)
        done = step + 1
        if settings.save_every and done % settings.save_every == 0 and done < settings.steps:
            if accelerator.is_main_process:
                state.save(done)
            accelerator.wait_for_everyone()
    metrics.close()
    if accelerator.is_main_process:
        state.remove()


@contextmanager
def main_process_first() -> Iterator[bool]:
    """Let one process write what all have; the others wait. Yields whether this one writes."""
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        yield state.is_main_process


def _steps(source: BatchSource, start: int, settings: Optimisation) -> Iterator[list[Batch]]:
    remaining = torch.utils.data.Subset(source, range(start, settings.steps))
    yield from DataLoader(
        remaining,
        batch_size=None,
        sampler=SequentialSampler(remaining),
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
    )


def _accumulate(
    wrapped: torch.nn.Module,
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
    for batch in batches:
        losses = wrapped(batch.to(device))
        sums["lm"] = sums.get("lm", 0.0) + float(losses["lm"].detach()) / max(targets, 1)
        loss = losses["lm"] / max(targets, 1)
        if "image_tokens" in losses:
            share = losses["image_tokens"] / image_tokens
            aux = {k: v * share for k, v in losses.items() if k.startswith("aux_")}
            for key, value in aux.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
            loss = loss + module.settings.weight * torch.stack(list(aux.values())).mean()
        # DDP averages gradients over processes; the shares above make a sum of them.
        accelerator.backward(loss * accelerator.num_processes)
    if accelerator.num_processes > 1:
        keys = sorted(sums)
        values = torch.tensor([sums[k] for k in keys], device=device, dtype=torch.float64)
        sums = dict(zip(keys, accelerator.reduce(values, reduction="sum").tolist(), strict=True))
    blocks = [value for key, value in sums.items() if key.startswith("aux_")]
    distill = sum(blocks) / len(blocks) if blocks else 0.0
    weighted = module.settings.weight * distill
    return {"loss": sums["lm"] + weighted, "lm": sums["lm"], "distill": distill} | sums


class Metrics:
    """Progress bar and ``metrics.jsonl``; a line holds means over the steps since the last.

    Args:
        file: appended to.
        name: of the stage.
        start: first step.
        settings: the recipe's.
        active: whether this process reports.
    """

    def __init__(
        self, file: Path, name: str, start: int, settings: Optimisation, active: bool
    ) -> None:
        self.file, self.name, self.settings, self.active = file, name, settings, active
        self.bar = tqdm(
            total=settings.steps, initial=start, desc=name, unit="step", disable=not active
        )
        self.sums: dict[str, float] = {}
        self.steps = self.tokens = 0
        self.since = time.perf_counter()
        if active:
            _drop_lines_from(file, name, start)

    def add(self, step: int, values: dict[str, float], batches: list[Batch]) -> None:
        """Count a step in."""
        self.steps += 1
        self.tokens += sum(batch.input_ids.numel() for batch in batches)
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.bar.update()
        if self.steps < self.settings.log_every and step + 1 < self.settings.steps:
            return
        now = time.perf_counter()
        line: dict[str, Any] = {"stage": self.name, "step": step + 1}
        line |= {key: round(value / self.steps, 6) for key, value in self.sums.items()}
        line["tokens_per_second"] = round(self.tokens / (now - self.since), 1)
        self.bar.set_postfix(lm=f"{line['lm']:.3f}", distill=f"{line['distill']:.3f}")
        if self.active:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.sums, self.steps, self.tokens, self.since = {}, 0, 0, now

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()


def _drop_lines_from(file: Path, name: str, start: int) -> None:
    """Forget what a cut-off run reported beyond the state it is resumed from."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        data = json.loads(line)
        if data["stage"] != name or data["step"] <= start:
            kept.append(line + "\n")
    file.write_text("".join(kept), encoding="utf-8")


class RunState:
    """What a run needs to go on: trained weights, optimizer, step, random state.

    A state is written beside the old one and takes its place by renaming: it is whole or absent.

    Args:
        folder: where it lies.
        module: the model.
        optimizers: of the run.
        settings: the recipe's; a state of another recipe is refused.
    """

    def __init__(
        self,
        folder: Path,
        module: TrainingModel,
        optimizers: list[torch.optim.Optimizer],
        settings: Optimisation,
    ) -> None:
        self.folder, self.module, self.optimizers = folder, module, optimizers
        self.settings = settings.model_dump(mode="json")

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps."""
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        data = {
            "step": step,
            "settings": self.settings,
            "trained": {name: parameter.detach() for name, parameter in trained.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "state.tmp"
        try:
            with temporary.open("wb") as file:
                torch.save(data, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(f"The training state could not be saved: {error}.") from error
        temporary.replace(self.folder / "state.pt")

    def load(self) -> int:
        """Restore the last state, if there is one; returns the number of steps done.

        Raises:
            CheckpointError: it is of another recipe or model.
        """
        file = self.folder / "state.pt"
        if not file.exists():
            return 0
        # Our own file, with Python's and numpy's random states in it.
        data = torch.load(file, map_location="cpu", weights_only=False)
        if data["settings"] != self.settings:
            raise CheckpointError(
                f"{file} was saved under another recipe; remove its folder to begin anew."
            )
        result = self.module.load_state_dict(data["trained"], strict=False)
        if result.unexpected_keys:
            raise CheckpointError(f"{file} belongs to another model.")
        for optimizer, state in zip(self.optimizers, data["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        python, numpy, pytorch = data["random"]
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
        return int(data["step"])

    def remove(self) -> None:
        """A finished run needs no state."""
        shutil.rmtree(self.folder, ignore_errors=True)
