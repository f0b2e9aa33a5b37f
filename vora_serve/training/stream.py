"""Endless streams of examples from data files: mixed, shuffled, packed, and resumable exactly.

A run draws from ``lanes``, each with its own share of every source and its own random state. Lanes
are dealt to processes and their workers, so what a step sees depends on recipe and step alone.

Within a lane, raw rows are drawn a window at a time (the shuffle buffer) and shuffled; what follows
from a window depends on nothing outside it. A lane's place is therefore small: where its sources
stood when the window began, and how far into the window it has come. (The ``datasets`` library's
own shuffle buffer loses its contents when a run is resumed.)
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vora_serve.training.conversations import read_row, shorten
from vora_serve.training.data import Example, Sample, Tokeniser, TooLongError
from vora_serve.training.data_recipe import Data, Source
from vora_serve.training.labels import SampleError
from vora_serve.training.packing import pack, plan_packs
from vora_serve.training.sources import FAULT, open_source, row_name

State = dict[str, Any]
Row = tuple[int, int, dict[str, Any]]  # source, number within the lane, contents


@dataclass
class Skipped:
    """Broken samples of a lane: how many in all, and those of them that were not yet reported."""

    count: int = 0
    fresh: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """Count a sample in."""
        self.count += 1
        self.fresh.append((name, reason))

    def report(self) -> list[tuple[str, str]]:
        """Names and reasons that were not reported before."""
        fresh, self.fresh = self.fresh, []
        return fresh


class SourceReader:
    """One lane's rows of one source, epoch after epoch.

    Args:
        source, seed, lane, lanes: as in :func:`open_source`.
    """

    def __init__(self, source: Source, seed: int, lane: int, lanes: int) -> None:
        self.source, self.place = source, (seed, lane, lanes)
        self.epoch = self.number = 0
        self._open()

    def state(self) -> State:
        """Where it stands."""
        return {
            "epoch": self.epoch,
            "number": self.number,
            "stream": copy.deepcopy(self.stream.state_dict()),
        }

    def load(self, state: State) -> None:
        """Go to where another stood."""
        self.epoch, self.number = state["epoch"], state["number"]
        self._open()
        self.stream.load_state_dict(copy.deepcopy(state["stream"]))

    def next(self) -> tuple[int, dict[str, Any]]:
        """The next row and its number.

        Raises:
            SampleError: the lane's share of the source is empty.
        """
        row = next(self.rows, None)
        if row is None:
            self.epoch += 1
            self._open()
            row = next(self.rows, None)
            if row is None:
                raise SampleError(
                    f"The source {self.source.files[0]} has no rows for lane {self.place[1] + 1} "
                    f"of {self.place[2]}."
                )
        self.number += 1
        return self.number, row

    def _open(self) -> None:
        seed, lane, lanes = self.place
        self.stream = open_source(self.source, seed, self.epoch, lane, lanes)
        self.rows: Iterator[dict[str, Any]] = self._iterate()

    def _iterate(self) -> Iterator[dict[str, Any]]:
        yield from self.stream  # opened at the first row, after a state may have been loaded


class Lane:
    """One of a run's streams of examples.

    Args:
        data: the recipe's section.
        tokeniser: turns samples into examples.
        seed: of the run.
        lane: which one.
        state: where it goes on; from the beginning when None.

    Raises:
        ConfigError: data files are missing.
    """

    def __init__(
        self, data: Data, tokeniser: Tokeniser, seed: int, lane: int, state: State | None = None
    ) -> None:
        self.data, self.tokeniser, self.seed, self.lane = data, tokeniser, seed, lane
        self.readers = [SourceReader(s, seed, lane, data.lanes) for s in data.sources]
        self.skipped = Skipped()
        self.window = 0
        self.state: State = state or self._begin()
        self.items = self._generate(self.state)

    def __next__(self) -> Example:
        """The next example; ``state`` then says where the lane stands after it.

        Raises:
            SampleError: more samples are broken than the recipe allows.
        """
        self.state, example = next(self.items)
        return example

    def _begin(self) -> State:
        return {
            "base": [reader.state() for reader in self.readers],
            "window": self.window,
            "group": 0,
            "taken": 0,
            "skipped": self.skipped.count,
        }

    def _generate(self, state: State) -> Iterator[tuple[State, Example]]:
        self.window, self.skipped.count = state["window"], state["skipped"]
        for reader, base in zip(self.readers, state["base"], strict=True):
            reader.load(base)
        group, taken = state["group"], state["taken"]
        while True:
            base = self._begin()
            rows = self._draw()
            size = self.data.pack_window if self.data.pack else 1
            starts = range(0, len(rows), size)
            for number in range(group, len(starts)):
                before = self.skipped.count
                examples = self._examples(rows[starts[number] : starts[number] + size])
                for index, example in enumerate(examples):
                    if index < taken:
                        continue
                    yield (
                        base | {"group": number, "taken": index + 1, "skipped": before},
                        example,
                    )
                taken = 0
            group = 0
            self.window += 1

    def _draw(self) -> list[Row]:
        """A window of rows, mixed by weight and shuffled."""
        rng = np.random.default_rng([self.seed, self.lane, self.window, 89])
        weights = np.array([source.weight for source in self.data.sources])
        size = self.data.shuffle_buffer
        picks = rng.choice(len(weights), size=size, p=weights / weights.sum())
        rows = [(int(pick), *self.readers[pick].next()) for pick in picks]
        return [rows[i] for i in rng.permutation(size)]

    def _examples(self, rows: list[Row]) -> list[Example]:
        examples = [e for e in (self._example(row) for row in rows) if e is not None]
        if not self.data.pack:
            return examples
        capacity = self.tokeniser.max_length
        pad_id = self.tokeniser.processor.tokenizer.pad_token_id
        plans = plan_packs([len(e.input_ids) for e in examples], capacity)
        # The order of packs would otherwise go from long samples to short ones.
        rng = np.random.default_rng([self.seed, self.lane, self.window, rows[0][1], 97])
        order = rng.permutation(len(plans))
        return [pack([examples[i] for i in plans[p]], capacity, pad_id) for p in order]

    def _example(self, row: Row) -> Example | None:
        pick, number, contents = row
        source = self.data.sources[pick]
        try:
            if FAULT in contents:
                raise SampleError(contents[FAULT])
            return self._tokenise(read_row(contents, folder_of(source)))
        except SampleError as error:
            name = row_name(contents, source, number)
            self.skipped.add(name, str(error))
            if self.skipped.count > self.data.max_skipped:
                raise SampleError(
                    f"{self.skipped.count} samples were broken, more than max_skipped "
                    f"({self.data.max_skipped}) allows; the last is {name}: {error}"
                ) from error
            return None

    def _tokenise(self, sample: Sample) -> Example:
        while True:
            try:
                return self.tokeniser(sample)
            except TooLongError:
                shorter = shorten(sample) if self.data.too_long == "shorten" else None
                if shorter is None:
                    raise
                sample = shorter


def folder_of(source: Source) -> Path:
    """Where relative image paths start: where the recipe says, else beside the data."""
    if source.image_dir:
        return Path(source.image_dir)
    first = Path(source.files[0])
    return first if first.is_dir() else first.parent
