"""What a pass reads: every row once, and hardly more bytes than there are, whatever the numbers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from model_plugin import ConfigError
from tests.vora_serve.training import bases, files
from vora_serve.training import parquet, run, sources
from vora_serve.training.data_recipe import Source
from vora_serve.training.loader import block
from vora_serve.training.recipe import read_recipe
from vora_serve.training.run_recipe import PretrainRun
from vora_serve.training.stream import SourceReader

ROW_BYTES = 20_000


def write_parquet(folder: Path, count: int, rows: int, group: int) -> int:
    """Files of rows that cannot be compressed; returns their bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for file in range(count):
        table = pa.table(
            {
                "id": list(range(file * rows, (file + 1) * rows)),
                "frames": [rng.bytes(ROW_BYTES) for _ in range(rows)],
            }
        )
        pq.write_table(table, folder / f"{file:03d}.parquet", row_group_size=group)
    return sum(file.stat().st_size for file in folder.iterdir())


def forget() -> None:
    """As another process would start."""
    for cache in (parquet._metadata, sources._units):
        cache.cache_clear()
    parquet._held.clear()
    parquet._last.clear()


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def one_pass(source: Source, shards: int, numbers: range | None = None) -> list[Any]:
    """Rows of the first pass, the shards taking turns as they do in a step."""
    mine = numbers or range(shards)
    readers = [SourceReader(source, 1, number, shards) for number in mine]
    units = sources.units_of(source)
    left = [
        sum(stop - start for start, stop in (p.bounds() for p in units.assign(1, 0, n, shards)))
        for n in mine
    ]
    found = []
    for turn in range(max(left)):
        found += [r.next()[1]["id"] for r, n in zip(readers, left, strict=True) if turn < n]
    return found


@pytest.mark.parametrize(
    ("count", "rows", "group", "shards"),
    [
        (8, 40, 10, 1), (8, 40, 10, 8), (7, 40, 10, 8), (7, 40, 16, 32), (12, 40, 10, 128),
        (1, 200, 200, 16), (3, 50, 50, 2), (5, 33, 7, 64),
    ],
)  # fmt: skip
def test_a_pass_over_parquet_reads_the_data_once(
    tmp_path: Path, count: int, rows: int, group: int, shards: int
) -> None:
    size = write_parquet(tmp_path / "data", count, rows, group)
    source = Source(files=(str(tmp_path / "data"),))
    forget()
    before = bytes_read()
    found = one_pass(source, shards)
    ratio = (bytes_read() - before) / size
    assert sorted(found) == list(range(count * rows)), "every row once"
    assert 0.9 < ratio < 1.2, ratio
    assert sources.reading(source, 1, shards, readers=1) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("shards", "readers"), [(8, 2), (8, 8), (32, 4), (12, 3)])
def test_what_several_readers_read_is_known_before(
    tmp_path: Path, shards: int, readers: int
) -> None:
    size = write_parquet(tmp_path / "data", 6, 40, 10)
    source = Source(files=(str(tmp_path / "data"),))
    expected = sources.reading(source, 1, shards, readers)
    found, read = [], 0
    for reader in range(readers):
        forget()
        sources.units_of(source)
        before = bytes_read()
        found += one_pass(source, shards, block(range(shards), reader, readers))
        read += bytes_read() - before
    assert sorted(found) == list(range(240))
    assert read / size == pytest.approx(expected, abs=0.08)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=40),
    st.integers(1, 150),
    st.integers(0, 5),
)
def test_every_row_is_assigned_once_in_a_pass(weights: list[int], shards: int, epoch: int) -> None:
    units = sources.Units(
        [sources.Unit("parquet", str(n), 0, weight, weight) for n, weight in enumerate(weights)]
    )
    assigned: dict[str, list[int]] = {}
    sizes = []
    for shard in range(shards):
        parts = units.assign(3, epoch, shard, shards)
        sizes.append(sum(part.last - part.first for part in parts))
        for part in parts:
            start, stop = part.bounds()
            assigned.setdefault(part.unit.file, []).extend(range(start, stop))
    assert {name: sorted(rows) for name, rows in assigned.items()} == {
        str(n): list(range(weight)) for n, weight in enumerate(weights)
    }
    assert max(sizes) - min(sizes) <= 1, "shards are equal"


@pytest.mark.parametrize("kind", ["lines", "array", "tar", "many tars"])
@pytest.mark.parametrize("shards", [1, 3, 16])
def test_other_formats_are_read_once_too(tmp_path: Path, kind: str, shards: int) -> None:
    records = [
        {"id": n, "text": "é" * (n % 50), "conversations": files.turns(n)} for n in range(90)
    ]
    if kind == "lines":
        (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, records)) + "\n \n")
    elif kind == "array":
        (tmp_path / "a.json").write_text(json.dumps(records, indent=2, ensure_ascii=False))
    else:
        chunks = [records] if kind == "tar" else [records[i::5] for i in range(5)]
        for index, chunk in enumerate(chunks):
            members = {}
            for record in chunk:
                members[f"{record['id']:03d}.png"] = bytes(3000)
                members[f"{record['id']:03d}.json"] = json.dumps(record).encode()
            files.write_members(tmp_path / f"{index}.tar", members)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    source = Source(files=(str(tmp_path),))
    before = bytes_read()
    assert sorted(one_pass(source, shards)) == list(range(90))
    # JSON is read through a memory map, which is not counted here.
    assert bytes_read() - before < 1.2 * size + 20_000


def test_a_source_with_fewer_rows_than_shards_serves_them_all(tmp_path: Path) -> None:
    source = Source(files=(str(files.write_text(tmp_path / "a.jsonl", 3)),))
    for number in range(8):
        reader = SourceReader(source, 1, number, 8)
        assert len({reader.next()[1]["id"] for _ in range(30)}) == 3


def test_a_damaged_row_group_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data", 1, 40, 10)
    file = tmp_path / "data" / "000.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 - 30_000 : len(content) // 2 - 20_000] = bytes(10_000)
    place = content.find(bytes(10_000))
    content[4:200] = bytes(196)  # the first group's first pages
    assert place > 0
    file.write_bytes(content)
    forget()
    source = Source(files=(str(file),))
    rows = [row for unit in sources.units_of(source).units for row in unit.read(0, 10)]
    faults = [row["__fault__"] for row in rows if "__fault__" in row]
    assert len(faults) == 1
    assert "cannot be read" in faults[0]
    assert len(rows) == 31
    file.write_bytes(content[:-100])
    forget()
    with pytest.raises(ConfigError, match=r"000\.parquet cannot be read as Parquet"):
        sources.units_of(source)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    import gzip

    tar = files.write_tar(tmp_path / "a.tar", 2)
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(ConfigError, match="is compressed"):
        list(sources.first_rows(Source(files=(str(tar),)), 1))


def test_the_dry_run_says_what_a_pass_reads(tmp_path: Path) -> None:
    recipe = bases.pretrain_recipe(tmp_path)
    data = tmp_path / "shards"
    data.mkdir()
    for index in range(3):
        files.write_parquet(data / f"{index}.parquet", 8, first=8 * index)
    changed = yaml.safe_load(recipe.read_text())
    changed["data"] = {"sources": [{"files": [str(data)]}], "shuffle_buffer": 8, "shards": 4}
    recipe.write_text(yaml.safe_dump(changed))
    said = run.describe(read_recipe(PretrainRun, recipe, []), processes=1, tflops=1)
    assert "1.00 times the data, in 4 shards by 1 reader(s)" in said
    over = ["optimisation.workers=4"]
    said = run.describe(read_recipe(PretrainRun, recipe, over), processes=1, tflops=1)
    assert re.search(r"1\.3\d times the data, in 4 shards by 4 reader\(s\)", said), said
    assert "readers share row groups" in said


def test_the_earlier_name_of_shards_still_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = bases.pretrain_recipe(tmp_path)
    assert read_recipe(PretrainRun, recipe, ["data.lanes=4"]).data.shards == 4
    assert "data.lanes is now called data.shards" in caplog.text
