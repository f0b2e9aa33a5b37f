"""Endless streams of examples from data files: mixed, shuffled, packed, and resumable exactly.

A run draws from ``shards``, each with its own share of every source and its own random state.
Shards are spread over processes and their workers, so what a step sees depends on recipe and step
alone.

Within a shard, raw rows are drawn a window at a time (the shuffle buffer) and shuffled; what
follows from a window depends on nothing outside it. A shard's place is therefore small: where its
sources were when the window began, and how far into the window it has come.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from vora_serve.training.conversations import read_row, shorten
from vora_serve.training.data import Example, Sample, Tokeniser, TooLongError
from vora_serve.training.data_recipe import Data, Source
from vora_serve.training.labels import SampleError
from vora_serve.training.packing import pack, plan_packs
from vora_serve.training.rows import FAULT
from vora_serve.training.skipped import Skipped, too_many
from vora_serve.training.sources import folder_of, row_name, units_of

State = dict[str, Any]
Drawn = tuple[int, int, dict[str, Any]]  # source, number within the shard, contents
#: So many samples in a row without one that can be trained on are a fault of recipe or data.
_BARREN = 10_000


class SourceReader:
    """One shard's rows of one source, pass after pass.

    Args:
        source, seed, shard, shards: as in :meth:`vora_serve.training.sources.Units.assign`.
    """

    def __init__(self, source: Source, seed: int, shard: int, shards: int) -> None:
        self.source, self.place = source, (seed, shard, shards)
        self.epoch = self.number = self.part = self.row = 0
        self.rows = self._iterate()

    def state(self) -> State:
        """Where it is: the pass, rows read in all, the part of the share, rows read of the part."""
        return {"epoch": self.epoch, "number": self.number, "part": self.part, "row": self.row}

    def load(self, state: State) -> None:
        """Go to where another was."""
        self.epoch, self.number = state["epoch"], state["number"]
        self.part, self.row = state["part"], state["row"]
        self.rows = self._iterate()

    def next(self) -> tuple[int, dict[str, Any]]:
        """The next row and its number.

        Raises:
            SampleError: the source has no rows.
        """
        row = next(self.rows, None)
        if row is None:
            raise SampleError(f"The source {self.source.files[0]} has no rows.")
        self.number += 1
        return self.number, row

    def _iterate(self) -> Iterator[dict[str, Any]]:
        seed, shard, shards = self.place
        units = units_of(self.source)
        empty = 0
        while empty < shards:  # of a source with fewer rows than shards, some have none in a pass
            empty += 1
            parts = units.assign(seed, self.epoch, shard, shards)
            while self.part < len(parts):
                part = parts[self.part]
                start, stop = part.bounds()
                for row in part.unit.read(start + self.row, stop):
                    empty = 0
                    self.row += 1
                    yield row
                self.part, self.row = self.part + 1, 0
            self.epoch, self.part = self.epoch + 1, 0


class Shard:
    """One of a run's streams of examples.

    Args:
        data: the recipe's section.
        tokeniser: turns samples into examples.
        seed: of the run.
        number: which one.
        state: where it goes on; from the beginning when None.

    Raises:
        ConfigError: data files are missing.
    """

    def __init__(
        self, data: Data, tokeniser: Tokeniser, seed: int, number: int, state: State | None = None
    ) -> None:
        self.data, self.tokeniser, self.seed, self.number = data, tokeniser, seed, number
        self.readers = [SourceReader(s, seed, number, data.shards) for s in data.sources]
        self.barren = 0
        self.skipped = Skipped()
        self.window = 0
        self.state: State = state or self._begin()
        self.items = self._generate(self.state)

    def __next__(self) -> Example:
        """The next example; ``state`` then says where the shard is after it.

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
            "skipped": dict(self.skipped.reasons),
            "seen": self.skipped.seen,
        }

    def _generate(self, state: State) -> Iterator[tuple[State, Example]]:
        self.window, self.skipped.seen = state["window"], state["seen"]
        self.skipped.reasons = Counter(state["skipped"])
        for reader, base in zip(self.readers, state["base"], strict=True):
            reader.load(base)
        group, taken = state["group"], state["taken"]
        while True:
            base = self._begin()
            rows = self._draw()
            size = self.data.pack_window if self.data.pack else 1
            starts = range(0, len(rows), size)
            for number in range(group, len(starts)):
                before = {"skipped": dict(self.skipped.reasons), "seen": self.skipped.seen}
                examples = self._examples(rows[starts[number] : starts[number] + size])
                for index, example in enumerate(examples):
                    if index < taken:
                        continue
                    yield base | before | {"group": number, "taken": index + 1}, example
                taken = 0
            group = 0
            self.window += 1

    def _draw(self) -> list[Drawn]:
        """A window of rows, mixed by weight and shuffled."""
        rng = np.random.default_rng([self.seed, self.number, self.window, 89])
        weights = np.array([source.weight for source in self.data.sources])
        size = self.data.shuffle_buffer
        picks = rng.choice(len(weights), size=size, p=weights / weights.sum())
        rows = [(int(pick), *self.readers[pick].next()) for pick in picks]
        return [rows[i] for i in rng.permutation(size)]

    def _examples(self, rows: list[Drawn]) -> list[Example]:
        examples = [e for e in (self._example(row) for row in rows) if e is not None]
        if not self.data.pack:
            return examples
        capacity = self.tokeniser.max_length
        pad_id = self.tokeniser.processor.tokenizer.pad_token_id
        plans = plan_packs([len(e.input_ids) for e in examples], capacity)
        # The order of packs would otherwise go from long samples to short ones.
        rng = np.random.default_rng([self.seed, self.number, self.window, rows[0][1], 97])
        order = rng.permutation(len(plans))
        return [pack([examples[i] for i in plans[p]], capacity, pad_id) for p in order]

    def _example(self, row: Drawn) -> Example | None:
        pick, number, contents = row
        source = self.data.sources[pick]
        self.skipped.seen += 1
        try:
            if FAULT in contents:
                raise SampleError(contents[FAULT], "unreadable")
            example = self._tokenise(read_row(contents, folder_of(source)))
        except SampleError as error:
            name = row_name(contents, source, number)
            self.skipped.add(name, error)
            self.barren += 1
            reason = too_many(self.skipped.reasons, self.skipped.seen, self.data)
            if reason is None and self.barren >= _BARREN:
                reason = f"None of the last {self.barren} samples can be trained on"
            if reason is not None:
                raise SampleError(f"{reason}; the last is {name}: {error}") from error
            return None
        self.barren = 0
        return example

    def _tokenise(self, sample: Sample) -> Example:
        while True:
            try:
                return self.tokeniser(sample)
            except TooLongError:
                shorter = shorten(sample) if self.data.too_long == "shorten" else None
                if shorter is None:
                    raise
                sample = shorter


#: Its earlier name.
Lane = Shard
