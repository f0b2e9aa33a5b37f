"""Small data files in every format that training reads."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

RGB = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 220)}


def png(index: int) -> bytes:
    """A plain image whose width tells its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (40 + index, 40), list(RGB.values())[index % 3]).save(buffer, "PNG")
    return buffer.getvalue()


def turns(index: int, *, words: int = 1) -> list[dict[str, str]]:
    """A conversation in the released form."""
    colour = list(RGB)[index % 3]
    return [
        {"from": "human", "value": f"Colour {index}?"},
        {"from": "gpt", "value": " ".join([colour] * words)},
    ]


def write_jsonl(folder: Path, count: int, first: int = 0, name: str = "data.jsonl") -> Path:
    """The released JSON lines: frames are files beside."""
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(first, first + count):
        (folder / "frames" / f"{index}.png").write_bytes(png(index))
        record = {"id": index, "frames": [f"frames/{index}.png"], "conversations": turns(index)}
        lines.append(json.dumps(record))
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def write_parquet(file: Path, count: int, first: int = 0, nested: bool = False) -> Path:
    """The released parquet schema: frames hold the images' bytes."""
    rows = []
    for index in range(first, first + count):
        said = [turns(index)] if nested else turns(index)
        rows.append({"id": f"p{index}", "frames": [png(index)], "conversations": said})
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=4)
    return file


def write_tar(file: Path, count: int, first: int = 0) -> Path:
    """A WebDataset: KEY.png and KEY.json side by side."""
    members = {}
    for index in range(first, first + count):
        said = json.dumps({"id": index, "conversations": turns(index)}).encode()
        members |= {f"{index:06d}.png": png(index), f"{index:06d}.json": said}
    return write_members(file, members)


def write_members(file: Path, members: dict[str, bytes]) -> Path:
    """A tar of these files, in their order."""
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def write_text(file: Path, count: int) -> Path:
    """Conversations without images."""
    records = [{"id": f"t{i}", "conversations": turns(i, words=1 + i % 40)} for i in range(count)]
    file.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return file
