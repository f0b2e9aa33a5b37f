"""Rows of one data file, by number: nothing is read but what is asked for.

An index says where rows are. Parquet's footer holds one; of a tar, it is made of the headers of its
members; a JSON file is scanned once, through a memory map, so that what is read of it afterwards
comes from the system's cache where it fits. Indices are kept for the life of a process, and data
loader workers inherit those of the process that starts them.
"""

import json
import mmap
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_plugin import ConfigError

#: Row field with the row's name for the log, and with what made it unreadable, if anything did.
NAME, FAULT = "__name__", "__fault__"
#: Row fields with the images, and the text, that come beside a tar's JSON.
TAR_IMAGES, CAPTION = "__images__", "__caption__"
_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic")
_CHUNK = 1 << 20

Row = dict[str, Any]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class JSONIndex:
    """Where the records of a file of JSON lines, or of one JSON array, are.

    Attributes:
        starts, ends: in bytes.
        numbers: what the log calls them: the line, or the place in the array.
        fault: why the file breaks off after them, if it does.
    """

    starts: Offsets
    ends: Offsets
    numbers: Offsets
    fault: str | None = None


@dataclass(frozen=True)
class TarSample:
    """The members of a tar that belong together, wherever in it they are.

    Attributes:
        name: what they have in common.
        members: extension, offset and size in bytes of each.
    """

    name: str
    members: tuple[tuple[str, int, int], ...]


def stamp(file: str) -> tuple[int, int]:
    """What another content of the same file would change."""
    found = Path(file).stat()
    return found.st_size, found.st_mtime_ns


def count_json(file: str) -> int:
    """Records of a JSON file, a fault that ends it included."""
    index = _json_index(file, stamp(file))
    return len(index.starts) + (index.fault is not None)


def read_json(file: str, start: int, stop: int) -> Iterator[Row]:
    """Records ``start`` to ``stop`` of a file of JSON lines, or of one JSON array."""
    index = _json_index(file, stamp(file))
    if start < min(stop, len(index.starts)):
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as text:
            for number in range(start, min(stop, len(index.starts))):
                record = text[index.starts[number] : index.ends[number]]
                yield _record(record, f"{file}:{index.numbers[number]}")
    if index.fault is not None and start <= len(index.starts) < stop:
        yield {NAME: file, FAULT: index.fault}


def count_tar(file: str) -> int:
    """Samples of a WebDataset tar, a fault that ends it included."""
    samples, fault = _tar_index(file, stamp(file))
    return len(samples) + (fault is not None)


def read_tar(file: str, start: int, stop: int) -> Iterator[Row]:
    """Samples ``start`` to ``stop`` of a WebDataset tar; JSON members are spread out."""
    samples, fault = _tar_index(file, stamp(file))
    with open(file, "rb", buffering=0) as tar:
        for sample in samples[start:stop]:
            row: Row = {NAME: f"{file}:{sample.name}"}
            images = {}
            for extension, offset, size in sample.members:
                tar.seek(offset)
                content = tar.read(size)
                if extension.rpartition(".")[2] in _IMAGE_SUFFIXES:
                    images[extension] = content
                elif extension == "json":
                    row = _record(content, row[NAME]) | row
                elif extension == "txt":
                    row[CAPTION] = content.decode("utf-8", errors="replace").strip()
            if images:
                row[TAR_IMAGES] = [images[extension] for extension in sorted(images)]
            yield row
    if fault is not None and start <= len(samples) < stop:
        yield {NAME: file, FAULT: fault}


@lru_cache(maxsize=256)
def _json_index(file: str, stamped: tuple[int, int]) -> JSONIndex:
    with open(file, "rb") as opened:
        head = opened.read(256)
    if not head:
        empty = np.empty(0, np.int64)
        return JSONIndex(empty, empty, empty)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return _array_index(file)
    return _lines_index(file)


def _lines_index(file: str) -> JSONIndex:
    found = []
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as text:
        size = len(text)
        for place in range(0, size, _CHUNK):
            chunk = np.frombuffer(text[place : place + _CHUNK], np.uint8)
            found.append(np.flatnonzero(chunk == ord("\n")) + place)
        ends = np.concatenate([*found, [size]]).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        numbers = np.arange(1, len(ends) + 1, dtype=np.int64)
        short = np.flatnonzero(ends - starts < 64)
        blank = [i for i in short if not text[starts[i] : ends[i]].strip(b" \t\r\n\xef\xbb\xbf")]
    kept = np.setdiff1d(np.arange(len(ends)), blank)
    return JSONIndex(starts[kept], ends[kept], numbers[kept])


def _array_index(file: str) -> JSONIndex:
    """Items of a JSON array, found by decoding one after another from a window of text."""
    decoder = json.JSONDecoder()
    starts: list[int] = []
    ends: list[int] = []
    fault = None
    # Bytes that are no UTF-8 keep their number, and line ends theirs.
    with open(file, encoding="utf-8", errors="surrogateescape", newline="") as opened:
        text = opened.read(_CHUNK)
        position = text.index("[") + 1
        place = _size(text[:position])
        while True:
            begin = position
            while position < len(text) and text[position] in " \t\r\n,":
                position += 1
            place += position - begin
            try:
                _, end = decoder.raw_decode(text, position)
            except ValueError:
                more = opened.read(_CHUNK)
                if more:
                    text, position = text[position:] + more, 0
                    continue
                if text[position:].strip() != "]":
                    fault = f"The array breaks off after {len(starts)} records."
                break
            starts.append(place)
            place += _size(text[position:end])
            ends.append(place)
            position = end
    numbers = np.arange(1, len(starts) + 1, dtype=np.int64)
    return JSONIndex(np.array(starts, np.int64), np.array(ends, np.int64), numbers, fault)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


@lru_cache(maxsize=256)
def _tar_index(file: str, stamped: tuple[int, int]) -> tuple[list[TarSample], str | None]:
    """Samples by what their members' names have in common, and why the tar breaks off."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    fault = None
    # Without a buffer, of which each header would fill one.
    with open(file, "rb", buffering=0) as opened:
        if opened.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            raise ConfigError(
                f"{file} is compressed; decompress it, so that it can be read in parts."
            )
        opened.seek(0)
        try:
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                for member in tar:
                    folder, _, base = member.name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    if not member.isfile() or not stem:
                        continue
                    name, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
                    while extension in found.get(name, ()):  # another sample of the same name
                        name += "'"
                    place = (member.offset_data, member.size)
                    found.setdefault(name, {})[extension] = place
        except (tarfile.TarError, EOFError) as error:
            fault = f"The tar breaks off: {error}"
    size = Path(file).stat().st_size
    samples = []
    for name, members in found.items():
        if any(offset + length > size for offset, length in members.values()):
            fault = fault or f"The tar breaks off within {name}."
            continue
        samples.append(TarSample(name, tuple((e, *place) for e, place in members.items())))
    return samples, fault


def _record(content: bytes, name: str) -> Row:
    try:
        record = json.loads(content.decode("utf-8", errors="replace").lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        return {NAME: name, FAULT: f"It is not valid JSON: {error}"}
    if not isinstance(record, dict):
        return {NAME: name, FAULT: "It is not a JSON object."}
    return record | {NAME: name}
