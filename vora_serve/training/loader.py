"""Batches of a run's steps on this process: of samples by number, or of shards of a stream."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, Subset, get_worker_info

from model_plugin import ConfigError, VoRAError
from vora_serve.training.data import (
    Batch,
    BatchSource,
    Example,
    SampleSource,
    Tokeniser,
    collate,
)
from vora_serve.training.data_recipe import Data
from vora_serve.training.labels import SampleError
from vora_serve.training.recipe import Optimisation
from vora_serve.training.skipped import Skipped
from vora_serve.training.stream import Shard, State

log = logging.getLogger(__name__)
SKIPPED_FILE = "skipped.jsonl"


class Loader(Protocol):
    """Micro-batches step by step."""

    @property
    def skipped(self) -> Skipped:
        """Samples read and passed over so far on this process."""
        ...

    def __iter__(self) -> Iterator[list[Batch]]:
        """Micro-batches of each step from the first that is not done."""
        ...

    def state(self) -> dict[int, State]:
        """The position in this process's part of the data after the last step."""
        ...


class IndexedLoader:
    """Samples by number: a step's samples follow from its number, so there is no state.

    Args:
        samples: by number.
        tokeniser: turns samples into examples.
        settings: the recipe's.
        start: first step.
        rank, world_size: this process.
    """

    skipped = Skipped()

    def __init__(
        self,
        samples: SampleSource,
        tokeniser: Tokeniser,
        settings: Optimisation,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.start, self.settings = start, settings
        self.source = BatchSource(
            samples,
            tokeniser,
            batch_size=settings.batch_size,
            micro_batch_size=settings.micro_batch_size or settings.batch_size,
            steps=settings.steps,
            rank=rank,
            world_size=world_size,
        )

    def __iter__(self) -> Iterator[list[Batch]]:
        remaining = Subset(self.source, range(self.start, self.settings.steps))
        yield from DataLoader(
            remaining,
            batch_size=None,
            sampler=SequentialSampler(remaining),
            num_workers=self.settings.workers,
            prefetch_factor=4 if self.settings.workers else None,
        )

    def state(self) -> dict[int, State]:
        """Nothing to remember."""
        return {}


@dataclass
class _Part:
    """A worker's part of a step."""

    shards: list[tuple[int, list[Example], State]]  # number, examples, state after them
    fresh: list[tuple[str, str, str]]
    error: str | None = None


class _Shards(IterableDataset[_Part]):
    """Runs in workers: every item is this worker's part of one step."""

    def __init__(
        self,
        data: Data,
        tokeniser: Tokeniser,
        seed: int,
        numbers: range,
        count: int,
        states: dict[int, State],
    ) -> None:
        self.data, self.tokeniser, self.seed = data, tokeniser, seed
        self.numbers, self.count, self.states = numbers, count, states

    def __iter__(self) -> Iterator[_Part]:
        worker = get_worker_info()
        mine = block(self.numbers, worker.id, worker.num_workers) if worker else self.numbers
        try:
            shards = [
                Shard(self.data, self.tokeniser, self.seed, number, self.states.get(number))
                for number in mine
            ]
            while True:
                part = _Part([], [])
                for shard in shards:
                    examples = [next(shard) for _ in range(self.count)]
                    part.shards.append((shard.number, examples, shard.state))
                    part.fresh += shard.skipped.report()
                yield part
        # A worker's exception would arrive with a traceback in its message.
        except VoRAError as error:
            yield _Part([], [], str(error))


def block(numbers: range, index: int, count: int) -> range:
    """One of ``count`` runs of neighbours: neighbouring shards share what is read."""
    size = len(numbers)
    return numbers[index * size // count : (index + 1) * size // count]


class ShardedLoader:
    """Shards of a stream, spread over processes and workers; see ``vora_serve.training.stream``.

    Args:
        data: the recipe's section.
        tokeniser: turns samples into examples.
        settings: the recipe's.
        start: steps done.
        states: of all shards, where a run is resumed.
        rank, world_size: this process.
        dense: make dense masks.
        report: file that broken samples are named in; none when None.

    Raises:
        ConfigError: shards, processes, workers and batch do not divide.
    """

    def __init__(
        self,
        data: Data,
        tokeniser: Tokeniser,
        settings: Optimisation,
        *,
        start: int = 0,
        states: dict[int, State] | None = None,
        rank: int = 0,
        world_size: int = 1,
        dense: bool = True,
        report: Path | None = None,
    ) -> None:
        check_division(data, settings, world_size)
        self.settings, self.remaining, self.dense = settings, settings.steps - start, dense
        self.pad_id = tokeniser.processor.tokenizer.pad_token_id
        self.report = report
        self.numbers = block(range(data.shards), rank, world_size)
        self.states = {n: s for n, s in (states or {}).items() if n in self.numbers}
        self.dataset = _Shards(
            data,
            tokeniser,
            settings.seed,
            self.numbers,
            settings.batch_size // data.shards,
            dict(self.states),
        )

    @property
    def skipped(self) -> Skipped:
        """Samples of this process's shards."""
        total = Skipped()
        for state in self.states.values():
            total.seen += state["seen"]
            total.reasons.update(state["skipped"])
        return total

    def __iter__(self) -> Iterator[list[Batch]]:
        workers = self.settings.workers
        parts_of_workers: Iterable[_Part] = DataLoader(
            self.dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
        )
        stream = iter(parts_of_workers)
        for _ in range(self.remaining):
            parts = [next(stream) for _ in range(workers or 1)]
            shards = sorted(
                (shard for part in parts for shard in part.shards), key=lambda shard: shard[0]
            )
            for part in parts:
                self._name(part.fresh)
                if part.error is not None:
                    raise SampleError(part.error)
            self.states |= {number: state for number, _, state in shards}
            yield self._batches([example for shard in shards for example in shard[1]])

    def state(self) -> dict[int, State]:
        """Where this process's shards are."""
        return self.states

    def _batches(self, examples: list[Example]) -> list[Batch]:
        size = self.settings.micro_batch_size or len(examples)
        examples = sorted(examples, key=lambda example: len(example.input_ids))
        groups = [examples[g : g + size] for g in range(0, len(examples), size)]
        return [collate(group, self.pad_id, self.dense) for group in groups]

    def _name(self, fresh: list[tuple[str, str, str]]) -> None:
        for name, _, reason in fresh:
            log.warning("skipped %s: %s", name, reason)
        if fresh and self.report is not None:
            with self.report.open("a", encoding="utf-8") as file:
                for name, kind, reason in fresh:
                    line = {"sample": name, "kind": kind, "reason": reason}
                    file.write(json.dumps(line) + "\n")


def check_division(data: Data, settings: Optimisation, world_size: int) -> None:
    """See that a step can be divided evenly.

    Raises:
        ConfigError: it cannot.
    """
    workers = settings.workers or 1
    if data.shards % world_size:
        raise ConfigError(
            f"data.shards ({data.shards}) must be a multiple of the number of processes "
            f"({world_size})."
        )
    if settings.batch_size % data.shards:
        raise ConfigError(
            f"optimisation.batch_size ({settings.batch_size}) must be a multiple of data.shards "
            f"({data.shards})."
        )
    if workers > data.shards // world_size:
        raise ConfigError(
            f"optimisation.workers ({workers}) must not exceed the shards of a process "
            f"({data.shards // world_size}); raise data.shards."
        )


def make_loader(
    samples: SampleSource | Data,
    tokeniser: Tokeniser,
    settings: Optimisation,
    *,
    start: int,
    states: dict[int, State],
    rank: int,
    world_size: int,
    dense: bool,
    report: Path | None,
) -> Loader:
    """The loader of a run: of samples by number, or of a recipe's data section."""
    if isinstance(samples, Data):
        return ShardedLoader(
            samples,
            tokeniser,
            settings,
            start=start,
            states=states,
            rank=rank,
            world_size=world_size,
            dense=dense,
            report=report,
        )
    return IndexedLoader(
        samples, tokeniser, settings, start=start, rank=rank, world_size=world_size
    )
