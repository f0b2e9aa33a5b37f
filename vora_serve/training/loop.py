"""The training loop: the same for pretraining and fine-tuning, on one process or many."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from model_plugin import VoRAError, VoRAProcessor
from vora_serve.training.accumulate import accumulate
from vora_serve.training.data import Batch, SampleSource, Tokeniser
from vora_serve.training.data_recipe import Data
from vora_serve.training.health import Health, StopRequest, TrainingStopped, all_finite
from vora_serve.training.held_out import HeldOutSet
from vora_serve.training.identity import Identity
from vora_serve.training.labels import SampleError
from vora_serve.training.loader import SKIPPED_FILE, Loader, make_loader
from vora_serve.training.metrics import METRICS_FILE, Metrics
from vora_serve.training.optim import Rates
from vora_serve.training.parallel import Strategy, make_strategy
from vora_serve.training.recipe import Optimisation
from vora_serve.training.skipped import Skipped, too_many
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
    identity: Identity | None = None,
    held_out: HeldOutSet | None = None,
    snapshot: Callable[[int], object] | None = None,
) -> RunState:
    """Train a model in place.

    A run that was interrupted resumes from its last saved state as if it had not been: a step's
    samples follow from its number, or from the saved place in the data.

    Args:
        module: model, teacher and heads; what requires gradients is trained.
        processor: tokenises samples.
        samples: where they come from: by number, or a recipe's data section.
        settings: the recipe's.
        max_length: most tokens of a sample.
        out_dir: gets ``metrics.jsonl`` (a line every ``log_every`` steps), ``skipped.jsonl`` with
            broken samples and, while the run lasts, ``state/``.
        name: shown at the progress bar and in the metrics.
        identity: what the run's result depends on; a saved state of another is refused.
        held_out: what the run is evaluated on while it lasts.
        snapshot: writes a checkpoint after some step; called every ``export_every`` steps.

    Returns:
        The run's state; the caller removes it when the result is safe on disk.

    Raises:
        SampleError: a sample cannot be trained on, or too many of a stream's were broken.
        CheckpointError: a saved state does not fit this run, or could not be written.
        ConfigError: processes, shards and batch do not divide.
        TrainingStopped: something else ended the run; the sentence names the last good state.
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
    rates = Rates(strategy.optimizers, settings)
    state = RunState(out_dir / STATE_FOLDER, strategy, settings, accelerator, identity or {})
    start = state.load()
    module.train()
    loader = make_loader(
        samples,
        Tokeniser(processor, max_length),
        settings,
        start=start,
        states=state.shards,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        dense=module.model.llm.config._attn_implementation in ("sdpa", "eager"),
        report=out_dir / SKIPPED_FILE if accelerator.is_main_process else None,
    )
    run = _Run(
        module,
        strategy,
        settings,
        accelerator,
        loader,
        state,
        samples if isinstance(samples, Data) else None,
    )
    try:
        with (
            StopRequest() as request,
            Metrics(
                out_dir / METRICS_FILE, name, start, settings, accelerator.is_main_process
            ) as metrics,
        ):
            for step, batches in enumerate(loader, start):
                rate = rates.set(step)
                losses, applied = run.step(step, batches)
                run.count_skipped(step + 1)
                metrics.add(step, losses | {"lr": rate}, batches, applied, run.skipped, run.health)
                done = step + 1
                if held_out is not None and (done % held_out.every == 0 or done == settings.steps):
                    found = held_out.evaluate(module, accelerator.device)
                    metrics.write({"stage": f"{name}, held out", "step": done} | found)
                run.keep(done, stop=request.received)
                run.check_skipped()
                if snapshot is not None and is_due(settings.export_every, done, settings.steps):
                    snapshot(done)
            run.finish()
    except SampleError as error:
        # A shard that finds nothing to train on is known to its process alone; several cannot save
        # a state then, since that takes all of them.
        if accelerator.num_processes == 1 and run.good[0] and state.step != run.good[0]:
            state.save(*run.good)
        raise SampleError(_ended(str(error), state), error.kind) from error
    except VoRAError as error:
        raise type(error)(_ended(str(error), state)) from error
    except (OSError, RuntimeError, MemoryError) as error:
        raise TrainingStopped(_ended(_reason(error), state)) from error
    return state


class _Run:
    """Steps of a run, and the states that it keeps."""

    def __init__(
        self,
        module: TrainingModel,
        strategy: Strategy,
        settings: Optimisation,
        accelerator: Accelerator,
        loader: Loader,
        state: RunState,
        data: Data | None,
    ) -> None:
        self.module, self.strategy, self.settings = module, strategy, settings
        self.accelerator, self.loader, self.state = accelerator, loader, state
        self.data = data
        #: Of all processes.
        self.skipped = loader.skipped
        self.health = Health(settings.max_nonfinite_steps)
        self.trained = [p for p in module.parameters() if p.requires_grad]
        #: The last step whose update was applied, and where the data loader was after it.
        self.good = (state.step or 0, dict(state.shards))

    def step(self, step: int, batches: list[Batch]) -> tuple[dict[str, float], bool]:
        """One step: its losses, and whether the weights were updated."""
        losses = accumulate(self.strategy, self.module, batches, self.accelerator)
        norm, applied = self.strategy.step(usable=math.isfinite(losses["loss"]))
        self.health.count(step, losses["loss"], norm, applied)
        if not applied and self.health.is_burst:
            self.state.save(*self.good)
            raise TrainingStopped(
                f"{self.health.in_a_row} steps in a row, up to step {step + 1}, had no finite loss "
                "or gradients."
            )
        if applied and self._any(not all_finite(self.trained)):
            raise TrainingStopped(
                f"The update of step {step + 1} made weights that are not finite."
            )
        return losses | {"grad_norm": norm}, applied

    def count_skipped(self, done: int) -> None:
        """Add up what all processes have skipped: several of them, where a line is written."""
        own = self.loader.skipped
        if self.accelerator.num_processes == 1:
            self.skipped = own
        elif done % self.settings.log_every == 0 or done == self.settings.steps:
            parts = gather_object([(own.seen, dict(own.reasons))])
            reasons = sum((Counter(found) for _, found in parts), Counter[str]())
            self.skipped = Skipped(sum(seen for seen, _ in parts), reasons)

    def check_skipped(self) -> None:
        """End the run where too much is skipped; it can be resumed once a limit is raised.

        Raises:
            SampleError: it is too much.
        """
        skipped = self.skipped
        reason = self.data and too_many(skipped.reasons, skipped.seen, self.data)
        if reason:
            if self.good[0] and self.state.step != self.good[0]:
                self.state.save(*self.good)
            raise SampleError(reason)

    def keep(self, done: int, *, stop: bool) -> None:
        """Save a state where one is due, or where the run is asked to stop."""
        applied = self.health.in_a_row == 0
        if applied:
            self.good = (done, dict(self.loader.state()))
        if self._any(stop):
            self.state.save(*self.good)
            raise TrainingStopped(f"The run was asked to stop (SIGTERM) after step {done}.")
        if self.health.in_a_row == 0 and is_due(
            self.settings.save_every, done, self.settings.steps
        ):
            self.state.save(*self.good)

    def finish(self) -> None:
        """Keep the last step, so that it outlives whatever happens to the export."""
        self.state.final = self.good
        if self.settings.save_every:
            self.state.keep_final()

    def _any(self, flag: bool) -> bool:
        """Whether it holds on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        count = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(count, reduction="sum") > 0)


def is_due(every: int, done: int, steps: int) -> bool:
    """Whether what happens every so many steps, but not after the last, happens now."""
    return bool(every) and done % every == 0 and done < steps


def _ended(reason: str, state: RunState) -> str:
    return f"{reason.rstrip('.')}. {state.last()}"


def _reason(error: BaseException) -> str:
    """The sentence of an error of a library's; a worker's carries its traceback with it."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return f"Training stopped: {type(error).__name__}"
    line = lines[-1] if "Traceback" in str(error) else lines[0]
    return f"Training stopped: {line.strip()[:300]}"
