"""Rows of Parquet files, a row group at a time, which is what can be read of one."""

import weakref
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model_plugin import ConfigError
from vora_serve.training.rows import FAULT, NAME, Row, stamp

#: Row groups that any shard of this process reads, and those that were read last: shards that share
#: one come to it at about the same time.
_held: "weakref.WeakValueDictionary[tuple[str, int, tuple[int, int]], Any]" = (
    weakref.WeakValueDictionary()
)
_last: "deque[Any]" = deque(maxlen=8)


def row_groups(file: str) -> tuple[tuple[int, int], ...]:
    """Rows, and bytes as stored, of each row group.

    Raises:
        ConfigError: it is not a Parquet file, or a damaged one.
    """
    metadata = _metadata(file, stamp(file))
    return tuple(
        (
            group.num_rows,
            sum(group.column(c).total_compressed_size for c in range(group.num_columns)),
        )
        for group in map(metadata.row_group, range(metadata.num_row_groups))
    )


def read_group(file: str, group: int, start: int, stop: int) -> Iterator[Row]:
    """Rows ``start`` to ``stop`` of a row group."""
    try:
        table = _table(file, group)
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        yield {NAME: f"{file}, row group {group}", FAULT: f"It cannot be read: {reason}"}
        return
    for number in range(start, min(stop, table.num_rows)):
        yield table.slice(number, 1).to_pylist()[0]


def _table(file: str, group: int) -> Any:
    key = (file, group, stamp(file))
    table = _held.get(key)
    if table is None:
        with pq.ParquetFile(file, metadata=_metadata(file, stamp(file))) as opened:
            table = opened.read_row_group(group, use_threads=False)
        _held[key] = table
        _last.append(table)
    return table


@lru_cache(maxsize=256)
def _metadata(file: str, stamped: tuple[int, int]) -> Any:
    try:
        return pq.read_metadata(file, stamp(file))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{file} cannot be read as Parquet: {reason}") from error
