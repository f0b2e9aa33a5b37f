"""What a run says of itself: progress bar, ``metrics.jsonl``, TensorBoard, Weights & Biases."""

import json
import time
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from model_plugin import ConfigError
from vora_serve.training.data import Batch
from vora_serve.training.health import Health
from vora_serve.training.recipe import Optimisation
from vora_serve.training.skipped import Skipped

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Progress bar and ``metrics.jsonl``; a line holds means over the steps since the last.

    Args:
        file: appended to.
        name: of the stage.
        start: first step.
        settings: the recipe's.
        active: whether this process reports.

    Raises:
        ConfigError: TensorBoard or Weights & Biases is asked for but not installed.
    """

    def __init__(
        self, file: Path, name: str, start: int, settings: Optimisation, active: bool
    ) -> None:
        self.file, self.name, self.settings, self.active = file, name, settings, active
        self.writers = _writers(file.parent, name, settings) if active else []
        self.bar = tqdm(
            total=settings.steps, initial=start, desc=name, unit="step", disable=not active
        )
        self.sums: dict[str, float] = {}
        self.steps = self.applied = self.tokens = 0
        self.since = time.perf_counter()
        if active:
            _drop_lines_from(file, name, start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        step: int,
        values: dict[str, float],
        batches: list[Batch],
        applied: bool,
        skipped: Skipped,
        health: Health,
    ) -> None:
        """Count a step in.

        Args:
            step: its number, from 0.
            values: losses and the like.
            batches: this process's micro-batches.
            applied: whether the weights were updated; the values of other steps are left out.
            skipped: samples passed over so far, on all processes.
            health: the run's.
        """
        self.steps += 1
        self.tokens += sum(batch.real_tokens or batch.input_ids.numel() for batch in batches)
        if applied:
            self.applied += 1
            for key, value in values.items():
                self.sums[key] = self.sums.get(key, 0.0) + value
        self.bar.update()
        if self.steps < self.settings.log_every and step + 1 < self.settings.steps:
            return
        now = time.perf_counter()
        line: dict[str, Any] = {"stage": self.name, "step": step + 1}
        line |= dict.fromkeys(values)  # null where no step of the line gave finite numbers
        line |= {key: round(value / self.applied, 6) for key, value in self.sums.items()}
        line["tokens"] = round(self.tokens / self.steps)  # of a step, on this process
        line["tokens_per_second"] = round(self.tokens / (now - self.since), 1)
        counts = {
            "skipped": skipped.count,
            "skipped_steps": health.skipped,
            "spikes": health.spikes,
        }
        line |= {key: count for key, count in counts.items() if count}
        if skipped.count:
            line["skipped_by_reason"] = dict(sorted(skipped.reasons.items()))
        if self.applied:
            self.bar.set_postfix(lm=f"{line['lm']:.3f}", distill=f"{line['distill']:.3f}")
        self.write(line)
        self.sums, self.steps, self.applied, self.tokens, self.since = {}, 0, 0, 0, now

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl`` and wherever else the run reports to."""
        if not self.active:
            return
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {k: v for k, v in line.items() if k != "step" and isinstance(v, int | float)}
        for writer in self.writers:
            writer.write(line["step"], numbers)

    def close(self) -> None:
        """End the progress bar and whatever else is open."""
        self.bar.close()
        for writer in self.writers:
            writer.close()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError("optimisation.tensorboard needs the package tensorboard.") from error
        self.writer = SummaryWriter(str(folder))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, name: str, settings: Optimisation) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("optimisation.wandb needs the package wandb.") from error
        config = settings.model_dump(mode="json")
        self.run = wandb.init(project=project, name=name, config=config, resume="allow")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


def _writers(folder: Path, name: str, settings: Optimisation) -> list[Any]:
    writers: list[Any] = []
    if settings.tensorboard:
        writers.append(_TensorBoard(folder / "tensorboard" / name))
    if settings.wandb is not None:
        writers.append(_WeightsAndBiases(settings.wandb, name, settings))
    return writers


def _drop_lines_from(file: Path, name: str, start: int) -> None:
    """Forget what a cut-off run reported beyond the state it is resumed from."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            data = json.loads(line)
        except ValueError:
            continue  # cut off while it was written
        own = data["stage"].partition(",")[0] == name
        if not own or data["step"] <= start:
            kept.append(line + "\n")
    file.write_text("".join(kept), encoding="utf-8")
