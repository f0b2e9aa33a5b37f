"""Data files distributed over the shards of a run, so that each row is read once in a pass.

A source is a list of units in the order of a pass: row groups of Parquet, else whole files; a world
that is drawn is one unit. Laid
end to end, they are cut into as many equal parts as there are shards, and a unit that a cut goes
through is cut at a row. Every second shard reads its part backwards, unit by unit, so that the two
shards of a cut unit come to it at the same time, at the beginning or at the end of a pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vora_serve.training import parquet
from vora_serve.training.data_recipe import Format, Source
from vora_serve.training.rows import NAME, Row, count_json, count_tar, read_json, read_tar, stamp
from vora_serve.world.scenes import Split
from vora_serve.world.wide.rows import ROWS, Kind, draw_rows


@dataclass(frozen=True)
class Unit:
    """What is assigned to shards: a row group, or a file.

    Attributes:
        kind: the file's format.
        file: its path.
        group: the row group's number; None for a file.
        weight: rows of a row group or world, bytes of a file.
        size: bytes that are read of it.
        split: of a world, as in :class:`Source`.
        families: of a world, as pairs: units are hashed.
    """

    kind: Format
    file: str
    group: int | None
    weight: int
    size: int
    split: Split = "train"
    families: tuple[tuple[Kind, float], ...] = ()

    def rows(self) -> int:
        """How many there are."""
        if self.group is not None or self.kind == "world":
            return self.weight
        return count_json(self.file) if self.kind == "jsonl" else count_tar(self.file)

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Rows ``start`` to ``stop``."""
        if self.kind == "world":
            return draw_rows(Path(self.file), self.split, start, stop, dict(self.families))
        if self.group is not None:
            return parquet.read_group(self.file, self.group, start, stop)
        return (read_json if self.kind == "jsonl" else read_tar)(self.file, start, stop)


@dataclass(frozen=True)
class Part:
    """A shard's part of a unit: from ``first`` to ``last``, measured as the unit's weight is."""

    unit: Unit
    first: int
    last: int

    def bounds(self) -> tuple[int, int]:
        """The numbers of its first row and of the one behind its last."""
        rows, weight = self.unit.rows(), self.unit.weight
        return self.first * rows // weight, self.last * rows // weight


class Units:
    """A source's units, in the order of its files.

    Args:
        units: them.
    """

    def __init__(self, units: list[Unit]) -> None:
        self.units = units
        self.weights = np.array([unit.weight for unit in units], np.int64)

    def assign(self, seed: int, epoch: int, shard: int, shards: int) -> list[Part]:
        """A shard's parts of one pass.

        Args:
            seed, epoch: the order of units follows from them.
            shard, shards: which share; another one in each pass, so that no shard has the same rows
                always.
        """
        order = np.random.default_rng([seed, epoch, 83]).permutation(len(self.units))
        ends = np.cumsum(self.weights[order])
        total = int(ends[-1]) if len(ends) else 0
        place = (shard + epoch) % shards
        first, last = place * total // shards, (place + 1) * total // shards
        parts = []
        for index in range(int(np.searchsorted(ends, first, side="right")), len(order)):
            unit = self.units[order[index]]
            begin = int(ends[index]) - unit.weight
            if begin >= last:
                break
            parts.append(Part(unit, max(first - begin, 0), min(last - begin, unit.weight)))
        return parts[::-1] if place % 2 else parts


def units_of(source: Source) -> Units:
    """A source's units.

    Raises:
        ConfigError: files are missing or cannot be read.
    """
    kind, files = source.resolve()
    if kind == "world":
        folder, families = str(files[0]), tuple(source.families.items())
        return Units([Unit(kind, folder, None, ROWS, 0, source.split, families)])
    return _units(kind, tuple((str(file), stamp(str(file))) for file in files))


@lru_cache(maxsize=64)
def _units(kind: Format, files: tuple[tuple[str, tuple[int, int]], ...]) -> Units:
    units: list[Unit] = []
    for file, (size, _) in files:
        if kind == "parquet":
            groups = enumerate(parquet.row_groups(file))
            units += [Unit(kind, file, n, rows, held) for n, (rows, held) in groups if rows]
        elif size:
            units.append(Unit(kind, file, None, size, size))
    return Units(units)


def reading(source: Source, seed: int, shards: int, readers: int) -> float:
    """Bytes that a pass reads, as a multiple of the data's.

    Args:
        source: the recipe's.
        seed: of the run.
        shards: of the run.
        readers: processes that read, each with neighbouring shards; those of a row group that two
            of them share read it twice.
    """
    units = units_of(source)
    total = sum(unit.size for unit in units.units)
    read = 0
    for reader in range(readers):
        own = range(reader * shards // readers, (reader + 1) * shards // readers)
        whole, cut = set(), 0
        for shard in own:
            for part in units.assign(seed, 0, shard, shards):
                if part.unit.group is not None:
                    whole.add(part.unit)
                else:
                    cut += part.last - part.first
        read += cut + sum(unit.size for unit in whole)
    return read / max(total, 1)


def first_rows(source: Source, count: int) -> Iterator[Row]:
    """The first rows of a source, in the order of its files.

    Raises:
        ConfigError: files are missing or cannot be read.
    """
    for unit in units_of(source).units:
        for row in unit.read(0, count):
            yield row
            count -= 1
        if count <= 0:
            return


def row_name(row: Row, source: Source, number: int) -> str:
    """What the log calls a row: its own name, its id, or its place in the stream."""
    if NAME in row:
        return str(row[NAME])
    given = row.get("id")
    shown = f"id {given}" if given not in (None, "") else f"row {number} of its shard"
    return f"{Path(source.files[0]).name}: {shown}"


def folder_of(source: Source) -> Path:
    """Where relative image paths start: where the recipe says, else beside the data."""
    if source.image_dir:
        return Path(source.image_dir)
    first = Path(source.files[0])
    return first if first.is_dir() else first.parent
