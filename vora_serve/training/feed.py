"""What a run's steps are fed with: samples by number, or lanes of a stream, on this process."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch.utils.data
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
from vora_serve.training.stream import Lane, State

log = logging.getLogger(__name__)
SKIPPED_FILE = "skipped.jsonl"


class Feed(Protocol):
    """Micro-batches step by step."""

    @property
    def skipped(self) -> int:
        """Broken samples met so far on this process."""
        ...

    def __iter__(self) -> Iterator[list[Batch]]:
        """Micro-batches of each step from the first that is not done."""
        ...

    def state(self) -> dict[int, State]:
        """Where this process's part of the data stands after the last step."""
        ...


class IndexedFeed:
    """Samples by number: a step's samples follow from its number, so there is no state.

    Args:
        samples: by number.
        tokeniser: turns samples into examples.
        settings: the recipe's.
        start: first step.
        rank, world_size: this process.
    """

    skipped = 0

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
class _Share:
    """A worker's part of a step."""

    lanes: list[tuple[int, list[Example], State, int]]  # number, examples, state, skipped so far
    fresh: list[tuple[str, str]]
    error: str | None = None


class _Lanes(IterableDataset[_Share]):
    """Runs in workers: every item is this worker's part of one step."""

    def __init__(
        self,
        data: Data,
        tokeniser: Tokeniser,
        seed: int,
        numbers: list[int],
        count: int,
        states: dict[int, State],
    ) -> None:
        self.data, self.tokeniser, self.seed = data, tokeniser, seed
        self.numbers, self.count, self.states = numbers, count, states

    def __iter__(self) -> Iterator[_Share]:
        worker = get_worker_info()
        mine = self.numbers[worker.id :: worker.num_workers] if worker else self.numbers
        # The datasets library deals a stream's files out to the workers that it finds itself in.
        # These lanes are this worker's alone already, so it must not find itself in one.
        torch.utils.data._utils.worker._worker_info = None
        try:
            lanes = [
                Lane(self.data, self.tokeniser, self.seed, number, self.states.get(number))
                for number in mine
            ]
            while True:
                share = _Share([], [])
                for lane in lanes:
                    examples = [next(lane) for _ in range(self.count)]
                    share.lanes.append((lane.lane, examples, lane.state, lane.skipped.count))
                    share.fresh += lane.skipped.report()
                yield share
        # A worker's exception would arrive with a traceback in its message.
        except VoRAError as error:
            yield _Share([], [], str(error))


class StreamFeed:
    """Lanes of a stream, dealt to processes and workers; see :mod:`vora_serve.training.stream`.

    Args:
        data: the recipe's section.
        tokeniser: turns samples into examples.
        settings: the recipe's.
        start: steps done.
        states: of all lanes, where a run goes on.
        rank, world_size: this process.
        dense: make dense masks.
        report: file that broken samples are named in; none when None.

    Raises:
        ConfigError: lanes, processes, workers and batch do not divide.
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
        self.report, self.max_skipped = report, data.max_skipped
        self.numbers = list(range(rank, data.lanes, world_size))
        self.states = {n: s for n, s in (states or {}).items() if n in self.numbers}
        self.counts = dict.fromkeys(self.numbers, 0)
        self.dataset = _Lanes(
            data,
            tokeniser,
            settings.seed,
            self.numbers,
            settings.batch_size // data.lanes,
            dict(self.states),
        )

    @property
    def skipped(self) -> int:
        """Broken samples of this process's lanes."""
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[list[Batch]]:
        workers = self.settings.workers
        shares: Iterable[_Share] = DataLoader(
            self.dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
        )
        stream = iter(shares)
        for _ in range(self.remaining):
            parts = [next(stream) for _ in range(workers or 1)]
            lanes = sorted(
                (lane for part in parts for lane in part.lanes), key=lambda lane: lane[0]
            )
            for part in parts:
                self._name(part.fresh)
                if part.error is not None:
                    raise SampleError(part.error)
            for number, _, state, skipped in lanes:
                self.states[number], self.counts[number] = state, skipped
            if self.skipped > self.max_skipped:
                raise SampleError(
                    f"{self.skipped} samples were broken, more than max_skipped "
                    f"({self.max_skipped}) allows."
                )
            yield self._batches([example for lane in lanes for example in lane[1]])

    def state(self) -> dict[int, State]:
        """Where this process's lanes stand."""
        return self.states

    def _batches(self, examples: list[Example]) -> list[Batch]:
        size = self.settings.micro_batch_size or len(examples)
        examples = sorted(examples, key=lambda example: len(example.input_ids))
        groups = [examples[g : g + size] for g in range(0, len(examples), size)]
        return [collate(group, self.pad_id, self.dense) for group in groups]

    def _name(self, fresh: list[tuple[str, str]]) -> None:
        for name, reason in fresh:
            log.warning("skipped %s: %s", name, reason)
        if fresh and self.report is not None:
            with self.report.open("a", encoding="utf-8") as file:
                for name, reason in fresh:
                    file.write(json.dumps({"sample": name, "reason": reason}) + "\n")


def check_division(data: Data, settings: Optimisation, world_size: int) -> None:
    """See that a step can be dealt out evenly.

    Raises:
        ConfigError: it cannot.
    """
    workers = settings.workers or 1
    if data.lanes % world_size:
        raise ConfigError(
            f"data.lanes ({data.lanes}) must be a multiple of the number of processes "
            f"({world_size})."
        )
    if settings.batch_size % data.lanes:
        raise ConfigError(
            f"optimisation.batch_size ({settings.batch_size}) must be a multiple of data.lanes "
            f"({data.lanes})."
        )
    if workers > data.lanes // world_size:
        raise ConfigError(
            f"optimisation.workers ({workers}) must not exceed the lanes of a process "
            f"({data.lanes // world_size}); raise data.lanes."
        )


def make_feed(
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
) -> Feed:
    """The feed of a run: of samples by number, or of a recipe's data section."""
    if isinstance(samples, Data):
        return StreamFeed(
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
    return IndexedFeed(samples, tokeniser, settings, start=start, rank=rank, world_size=world_size)
