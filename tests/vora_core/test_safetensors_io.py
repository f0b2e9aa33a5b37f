"""Safetensors bytes: what the library reads and writes, and what is damaged is said to be."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model_plugin.tensors import TensorFiles, write_tensor
from vora_core.errors import CheckpointError
from vora_core.safetensors_io import SafetensorsReader, SafetensorsWriter, ShardWriter, read_entries

TENSORS = {
    "a": torch.arange(15.0).reshape(5, 3),
    "b.weight": torch.arange(7.0).bfloat16(),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "flags": torch.tensor([True, False]),
    "grün": torch.ones(2, dtype=torch.float8_e4m3fn),
}


def test_files_are_what_safetensors_reads_and_writes(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, list(TENSORS), 1 << 30) as writer:
        for name, tensor in TENSORS.items():
            write_tensor(writer, name, tensor)
    read = load_file(tmp_path / "model.safetensors")
    (tmp_path / "theirs").mkdir()
    save_file(TENSORS, str(tmp_path / "theirs" / "model.safetensors"))
    with TensorFiles(tmp_path / "theirs") as files:
        for name, tensor in TENSORS.items():
            assert torch.equal(read[name].float(), tensor.float()), name
            assert read[name].dtype == tensor.dtype
            assert torch.equal(files.read(name).float(), tensor.float()), name
            assert files.shapes[name] == tuple(tensor.shape)
            assert files.dtypes[name] == str(tensor.dtype).removeprefix("torch.")
        assert torch.equal(files.read("a", range(2, 4)), TENSORS["a"][2:4])


def test_shards_have_an_index_and_keep_their_bound(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(10)}
    with ShardWriter(tmp_path, list(tensors), 1000) as writer:
        for name, tensor in tensors.items():
            write_tensor(writer, name, tensor)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4000}
    assert sorted({*index["weight_map"].values()}) == [
        f"model-{n:05d}-of-00005.safetensors" for n in range(1, 6)
    ]
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


def test_a_failure_leaves_no_file_with_the_final_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError), ShardWriter(tmp_path, ["a"], 1000) as writer:
        writer.add("a", "F32", [2], b"12345")
    assert not list(tmp_path.glob("*.safetensors"))


def test_wrong_bytes_are_refused(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x", ["a"])
    with pytest.raises(CheckpointError, match="a has 5 bytes"):
        writer.add("a", "F32", [2], b"12345")
    writer.abandon()


def _file(path: Path, header: object, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ([], b""),
        ({"a": {"dtype": "F32", "shape": [1]}}, b""),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234"),
        ({"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}, b"1234"),
        ({"a": 3}, b""),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: object, data: bytes) -> None:
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        read_entries(_file(tmp_path / "x", header, data))


def test_cut_and_grown_files_are_refused(tmp_path: Path) -> None:
    save_file(TENSORS, str(tmp_path / "whole"))
    whole = (tmp_path / "whole").read_bytes()
    for number, data in enumerate([whole[:-3], whole + b"x", whole[:40], whole[:5], b"", b"no"]):
        file = tmp_path / str(number)
        file.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            SafetensorsReader(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="cannot be opened"):
        SafetensorsReader(tmp_path / "absent")


@given(data=st.binary(max_size=200))
def test_random_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "random.safetensors"
    file.write_bytes(data)
    try:
        read_entries(file)
    except CheckpointError:
        return
    # What is accepted is a header without tensors, with nothing behind it.
    assert json.loads(data[8:]).keys() <= {"__metadata__"}
