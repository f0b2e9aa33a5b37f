"""Data files as streams of rows, through the ``datasets`` library: nothing is converted beforehand.

JSON lines and tars are read by readers of our own behind ``IterableDataset.from_generator``: the
library's would infer one schema for a whole file and end the stream at the first row that does not
fit it, where a run should skip that row and go on.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from vora_serve.training.data_recipe import Format, Source

#: Row field with the row's name for the log, and with what made it unreadable, if anything did.
NAME, FAULT = "__name__", "__fault__"
_CHUNK = 1 << 20


def open_source(source: Source, seed: int, epoch: int, lane: int, lanes: int) -> IterableDataset:
    """One lane's share of a data set, once through.

    Args:
        source: the recipe's.
        seed, epoch: the order of files follows from them.
        lane, lanes: which share. Whole files are dealt out when their number is a multiple of
            ``lanes``; rows otherwise.

    Returns:
        Rows (dictionaries), with :data:`NAME`; resumable by ``state_dict``/``load_state_dict``.

    Raises:
        ConfigError: files are missing.
    """
    kind, files = source.resolve()
    order = np.random.default_rng([seed, epoch, 83]).permutation(len(files))
    names = [str(files[i]) for i in order]
    stream = _open(kind, names)
    if lanes > 1:
        stream = split_dataset_by_node(stream, rank=lane, world_size=lanes)
    return stream


def _open(kind: Format, names: list[str]) -> IterableDataset:
    if kind == "parquet":
        rows = datasets.load_dataset("parquet", data_files=names, split="train", streaming=True)
        return rows.decode(False)
    reader = read_json if kind == "jsonl" else read_tars
    return IterableDataset.from_generator(reader, gen_kwargs={"files": names})


def read_json(files: list[str]) -> Iterator[dict[str, Any]]:
    """Records of JSON-lines files, or of files that hold one JSON array, never read whole."""
    for name in files:
        with open(name, encoding="utf-8", errors="replace") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            file.seek(0)
            if first == "[":
                yield from _array(file, name)
                continue
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _record(line, f"{name}:{number}")


def read_tars(files: list[str]) -> Iterator[dict[str, Any]]:
    """Samples of WebDataset tars: neighbouring members of one name; JSON members are spread out."""
    for name in files:
        row: dict[str, Any] = {}
        key = None
        try:
            with tarfile.open(name, "r|*") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    folder, _, base = member.name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    if (folder, stem) != key and row:
                        yield row
                        row = {}
                    key = (folder, stem)
                    row[NAME] = f"{name}:{folder}/{stem}" if folder else f"{name}:{stem}"
                    content = tar.extractfile(member)
                    _add(row, extension.lower(), content.read() if content else b"")
        except (tarfile.TarError, OSError, EOFError) as error:
            yield {NAME: name, FAULT: f"The tar breaks off: {error}"}
            row = {}
        if row:
            yield row


def _add(row: dict[str, Any], extension: str, content: bytes) -> None:
    if extension == "json":
        row.update(_record(content.decode("utf-8", errors="replace"), row[NAME]))
    elif extension == "txt":
        row.setdefault("conversations", _caption(content.decode("utf-8", errors="replace")))
    else:
        row[extension] = content


def _caption(text: str) -> list[dict[str, str]]:
    """A picture's text file is its caption."""
    return [
        {"from": "human", "value": "Describe the image."},
        {"from": "gpt", "value": text.strip()},
    ]


def _record(text: str, name: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        return {NAME: name, FAULT: f"It is not valid JSON: {error}"}
    if not isinstance(record, dict):
        return {NAME: name, FAULT: "It is no JSON object."}
    return record | {NAME: name}


def _array(file: Any, name: str) -> Iterator[dict[str, Any]]:
    """Items of a JSON array, decoded one after another from a window of text."""
    decoder = json.JSONDecoder()
    text, position, number = file.read(_CHUNK), 0, 0
    position = text.index("[") + 1
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            item, position = decoder.raw_decode(text, position)
        except ValueError:
            more = file.read(_CHUNK)
            if more:
                text, position = text[position:] + more, 0
                continue
            if text[position:].strip() != "]":
                yield {NAME: name, FAULT: f"The array breaks off after {number} records."}
            return
        number += 1
        row = item if isinstance(item, dict) else {FAULT: "It is no JSON object."}
        yield row | {NAME: f"{name}:{number}"}


def row_name(row: dict[str, Any], source: Source, number: int) -> str:
    """What the log calls a row: its own name, its id, or its place in the stream."""
    if NAME in row:
        return str(row[NAME])
    given = row.get("id")
    shown = f"id {given}" if given not in (None, "") else f"row {number} of its lane"
    return f"{Path(source.files[0]).name}: {shown}"
